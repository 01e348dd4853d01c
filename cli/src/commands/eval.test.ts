import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { capabilities } from '@facetrain/native';
import { encodeOnnx } from '@facetrain/trainer/onnx/write';
import { readVerificationSet } from '@facetrain/trainer/verification/verification-set';
import { exampleFaces } from '../../../hack/lib/paths.mjs';
import { StatusLine } from '../terminal-output.ts';
import { type EvalOptions, evaluate } from './eval.ts';
import { evaluateTemplates } from './eval-templates.ts';
import { inspect } from './inspect.ts';

test('eval reads colors as the file’s metadata says it, unless an option does, and inspect shows it', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-eval-'));
  try {
    const model = join(folder, 'model.onnx');
    // The blue of each tile of 8 x 8 pixels counts more than the red, so the order of colors is seen.
    const weight = Float32Array.from({ length: 3 * 64 }, (_, i) => [0, 0.01, 0.05][Math.floor(i / 64)]!);
    const node = (op: string, inputs: string[], output: string, attributes = {}) => {
      return { name: output, op, inputs, outputs: [output], attributes };
    };
    const graph = {
      input: { name: 'data', channels: 3, height: 112, width: 112 },
      output: { name: 'embedding', dim: 196 },
      nodes: [
        node('Conv', ['data', 'weight'], 'tiles', { kernel_shape: [8, 8], strides: [8, 8] }),
        node('Flatten', ['tiles'], 'embedding', { axis: 1 }),
      ],
      initializers: { weight: { dims: [1, 3, 8, 8], data: weight } },
    };
    const metadata = { 'facetrain.channelOrder': 'bgr' };
    await writeFile(model, encodeOnnx(graph, { metadata }));
    const pairs = join(exampleFaces, 'lfw-small.bin');
    const run = async (options: Pick<EvalOptions, 'channelOrder' | 'device'>) => {
      const { signal } = new AbortController();
      const { json, text } = await evaluate({ model, pairs, threads: 1, ...options }, new StatusLine(), signal);
      return { order: json.channelOrder, threshold: json.threshold, device: json.device, text };
    };
    const [own, bgr, rgb] = [await run({}), await run({ channelOrder: 'bgr' }), await run({ channelOrder: 'rgb' })];
    assert.deepEqual([own.order, bgr.order, rgb.order], ['bgr', 'bgr', 'rgb']);
    assert.equal(own.threshold, bgr.threshold);
    assert.notEqual(own.threshold, rgb.threshold);
    assert.match(own.text, /Input +BGR, -1\.\.1/);
    const { json } = await inspect(model);
    assert.ok(json.type === 'model' && 'operators' in json);
    assert.equal(json.input.channelOrder, 'bgr');

    const groups = join(folder, 'groups.txt');
    await writeFile(groups, `${Array.from({ length: 600 }, (_, pair) => (pair < 400 ? 'old' : 'young')).join('\n')}\n`);
    const { signal } = new AbortController();
    const judged = await evaluate({ model, pairs, groups, threads: 1 }, new StatusLine(), signal);
    assert.deepEqual(
      judged.json.groups?.map(({ group, pairs: of }) => [group, of]),
      [
        ['old', 400],
        ['young', 200],
      ],
    );
    assert.match(judged.text, /TAR at FAR 1e-4 +n\/a, needs 10000 pairs of different people; the set has 300\n/);
    assert.match(judged.text, /TAR at FAR 1e-3 .*not resolved by 300 pairs of different people\n/);
    assert.match(judged.text, /Group young +\d+\.\d\d % of 200 pairs/);
    await writeFile(groups, 'old\n');
    await assert.rejects(
      evaluate({ model, pairs, groups, threads: 1 }, new StatusLine(), signal),
      /groups\.txt: 1 line; a text file with a line for each of the 600 pairs/,
    );

    // The first pairs as templates of one picture each: the angles are the same, so the rates are, too.
    const set = await readVerificationSet(pairs);
    await mkdir(join(folder, 'meta'));
    await mkdir(join(folder, 'loose_crop'));
    const pictures = set.encoded.slice(0, 40);
    for (const [i, encoded] of pictures.entries()) await writeFile(join(folder, 'loose_crop', `${i}.jpg`), encoded);
    const lines = (count: number, line: (i: number) => string) =>
      Array.from({ length: count }, (_, i) => `${line(i)}\n`).join('');
    const meta = (name: string) => join(folder, 'meta', name);
    await writeFile(
      meta('x_face_tid_mid.txt'),
      lines(40, (i) => `${i}.jpg ${i} 0`),
    );
    // Pictures of other pairs are taken to be of different people.
    await writeFile(
      meta('x_template_pair_label.txt'),
      lines(20, (i) => `${2 * i} ${2 * i + 1} 1`) + lines(20, (i) => `${2 * i} ${(2 * i + 7) % 40} 0`),
    );
    const byTemplates = await evaluateTemplates({ model, templates: folder, threads: 1 }, new StatusLine(), signal);
    const { tarAtFar, positives, negatives } = byTemplates.json;
    assert.deepEqual([positives, negatives, Object.keys(tarAtFar)], [20, 20, ['1e-1', '1e-3']]);
    assert.ok(tarAtFar['1e-3']! <= tarAtFar['1e-1']!);
    assert.match(byTemplates.text, /Templates +40 of 40 media, 40 pictures\n/);
    assert.match(byTemplates.text, /TAR at FAR 1e-6 +n\/a, needs 1000000 pairs of different people; the set has 20\n/);

    await writeFile(model, encodeOnnx(graph));
    assert.equal((await run({})).order, 'rgb');

    const { nccl, cudaDevices } = capabilities();
    const device = async (choice: 'auto' | 'cpu' | 'cuda') => (await run({ device: choice })).device;
    assert.equal(await device('cpu'), 'cpu');
    assert.equal(await device('auto'), cudaDevices > 0 ? 'cuda' : 'cpu');
    if (cudaDevices > 0) assert.equal(await device('cuda'), 'cuda');
    else
      await assert.rejects(
        device('cuda'),
        nccl
          ? /--device: cuda, but this machine has no CUDA device; cpu or auto/
          : /this build has no CUDA; cpu or auto/,
      );
  } finally {
    await rm(folder, { recursive: true });
  }
});

test('inspect and eval say what the file for TensorRT is', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-eval-'));
  t.after(() => rm(folder, { recursive: true }));
  const model = join(folder, 'model.int7.trt.onnx');
  const parameters = ['scale', 'zero'];
  const graph = {
    input: { name: 'data', channels: 3, height: 112, width: 112 },
    output: { name: 'embedding', dim: 3 },
    nodes: [
      { name: 'q', op: 'QuantizeLinear', inputs: ['data', ...parameters], outputs: ['q'], attributes: {} },
      { name: 'dq', op: 'DequantizeLinear', inputs: ['q', ...parameters], outputs: ['dq'], attributes: {} },
      { name: 'pool', op: 'GlobalAveragePool', inputs: ['dq'], outputs: ['pool'], attributes: {} },
      { name: 'embedding', op: 'Flatten', inputs: ['pool'], outputs: ['embedding'], attributes: { axis: 1 } },
    ],
    initializers: { scale: { dims: [], data: Float32Array.of(0.01) }, zero: { dims: [], data: Int8Array.of(0) } },
  };
  await writeFile(model, encodeOnnx(graph, { metadata: { 'facetrain.format': 'int7-tensorrt' } }));
  const expected = /model\.int7\.trt\.onnx: of the form for TensorRT; the model\.int7\.onnx /;
  await assert.rejects(inspect(model), expected);
  const pairs = join(exampleFaces, 'lfw-small.bin');
  const { signal } = new AbortController();
  await assert.rejects(evaluate({ model, pairs, threads: 1 }, new StatusLine(), signal), expected);
});
