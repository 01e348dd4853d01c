/** INT7 files in the addon, which reads them as the C library does (native/int7/onnx_reader.h). */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { FacetrainError } from '@facetrain/api';
import { type Graph, Int7FileModel, Int7Model, type Pictures } from '@facetrain/native';
import { encodeOnnx } from '../onnx/write.ts';
import { GraphBuilder, networkOfNodes, plainScales, smallFaceNet } from '../testing/graph-fixtures.ts';
import { noise } from '../testing/onnx-oracles.ts';
import { modelFile } from './artifact-files.ts';
import { disposable } from './disposable.ts';
import { fold } from './fold.ts';
import { encodeInt7 } from './qdq.ts';

const origin = { source: 'a', calibration: 'b', channelOrder: 'rgb' } as const;
const options = { subject: 'm.int7.onnx', computeThreads: 2 };

function written(graph: Graph) {
  const layers = fold(graph);
  const scales = plainScales(layers);
  return { layers, scales, bytes: modelFile(layers, scales, origin) };
}

function pictures(count: number, { height, width }: Graph['input']): Pictures {
  const data = Uint8Array.from(noise(count * height * width * 3, 7), (value) => Math.round((value + 1) * 127.5));
  return { count, height, width, channelOrder: 'rgb', data };
}

test('a file computes what its layers and scales do, all outputs or the one that is named', async () => {
  const { layers, scales, bytes } = written(networkOfNodes());
  const few = pictures(3, layers.input);
  await using searched = disposable(await Int7Model.open(layers, scales, { computeThreads: 1 }));
  await using file = disposable(await Int7FileModel.open(bytes, options));
  const { name, channels, height, width } = layers.input;
  assert.deepEqual(file.model.input, { name, channels, height, width });
  assert.deepEqual(file.model.outputs, layers.outputs);
  const all = await searched.model.embed(few, { flip: true });
  assert.deepEqual(await file.model.embed(few, { flip: true }), all);

  const [first, second] = layers.outputs!;
  const start = first!.dims.reduce((product, dim) => product * dim, 1);
  await using one = disposable(await Int7FileModel.open(bytes, { ...options, output: second!.name }));
  assert.equal(one.model.dim, 10);
  assert.deepEqual(one.model.outputs, [second]);
  const rows = Array.from({ length: 3 }, (_, n) => [...all.subarray(n * (start + 10) + start, (n + 1) * (start + 10))]);
  assert.deepEqual([...(await one.model.embed(few, { flip: true }))], rows.flat());
  await assert.rejects(
    file.model.embed(pictures(1, { ...layers.input, width: 9 })),
    /^FacetrainError: input 'data': 1 picture of 14 x 9 in 378 bytes; pictures of 14 x 14/,
  );
});

test('what is no INT7 file is refused with the file’s name', async () => {
  const { layers, scales, bytes } = written(smallFaceNet());
  const withMetadata = (metadata: Record<string, string>) => encodeOnnx(encodeInt7(layers, scales), { metadata });
  const refused: Record<string, [Uint8Array, RegExp]> = {
    'cut short': [bytes.subarray(0, bytes.length - 100), /^m\.int7\.onnx: damaged; an ONNX model is wanted$/],
    empty: [new Uint8Array(), /^m\.int7\.onnx: empty; /],
    'of a newer format': [
      withMetadata({ 'facetrain.format': 'int7', 'facetrain.version': '3' }),
      /^m\.int7\.onnx: of version 3 of the format; at most 2, so a newer Facetrain is needed$/,
    ],
    'of no format': [
      withMetadata({}),
      /^m\.int7\.onnx: has no metadata facetrain\.format, so no INT7 network; a model\.int7\.onnx of Facetrain /,
    ],
    'for TensorRT': [
      modelFile(layers, scales, origin, 'tensorrt'),
      /^m\.int7\.onnx: of the form for TensorRT; the model\.int7\.onnx of the same folder is wanted/,
    ],
  };
  for (const [name, [file, message]] of Object.entries(refused))
    await assert.rejects(Int7FileModel.open(file, options), (error: FacetrainError) => {
      assert.deepEqual([error.name, error.code], ['FacetrainError', 'InvalidArtifact'], name);
      assert.match(error.message, message);
      return true;
    });
  await assert.rejects(Int7FileModel.open(bytes, { ...options, output: 'x' }), {
    code: 'InvalidModel',
    message: `m.int7.onnx: has no output "x"; one of its outputs: "${layers.output.name}"`,
  });
});

test('a file that asks for more memory than there is is refused before it is allocated', async () => {
  const b = new GraphBuilder({ height: 1 << 14, width: 1 << 10 });
  const { bytes } = written(b.graph(b.flatten(b.node('GlobalAveragePool', [b.conv('data', 3, 8, 1)]))));
  // Each thread has a picture of its own: terabytes.
  await assert.rejects(
    Int7FileModel.open(bytes, { ...options, computeThreads: 100_000 }),
    /^FacetrainError: m\.int7\.onnx: takes \d{14} bytes of memory; at most \d+, which are available$/,
  );
});
