import assert from 'node:assert/strict';
import files, { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { encodeOnnx } from '@facetrain/trainer/onnx/write';
import { StatusLine } from '../terminal-output.ts';
import { quantize } from './quantize.ts';

test('the model is read once, also for the order of its colors', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-quantize-'));
  t.after(() => rm(folder, { recursive: true }));
  const model = join(folder, 'model.onnx');
  const graph = {
    input: { name: 'data', channels: 3, height: 2, width: 2 },
    output: { name: 'embedding', dim: 3 },
    nodes: [
      { name: 'pool', op: 'GlobalAveragePool', inputs: ['data'], outputs: ['pool'], attributes: {} },
      { name: 'embedding', op: 'Flatten', inputs: ['pool'], outputs: ['embedding'], attributes: { axis: 1 } },
    ],
    initializers: {},
  };
  await writeFile(model, encodeOnnx(graph));
  const read = t.mock.method(files, 'readFile');
  syncBuiltinESMExports();
  t.after(syncBuiltinESMExports);
  const options = {
    ...{ model, calibration: join(folder, 'none'), out: join(folder, 'int7'), images: 1, seed: 0, rounds: 0 },
    ...{ maxBadPictures: 0, strict: false, threads: 1, fresh: false },
  };
  // Refused after the model was loaded: there are no calibration pictures.
  await assert.rejects(quantize(options, new StatusLine(), new AbortController().signal), /none/);
  assert.equal(read.mock.calls.filter(({ arguments: [path] }) => path === model).length, 1);
});
