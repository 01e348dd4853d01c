/** Files that are read, written and read again. Unusual and broken files: read.test.ts. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { checkWithOnnx, largestDifference, MOBILEFACENET, noise, runOrt } from '../testing/onnx-oracles.ts';
import { parseOnnx, readOnnx } from './read.ts';
import { encodeOnnx } from './write.ts';

test('the pretrained MobileFaceNet, read and written again, is the same function, for any batch', async () => {
  const original = await readFile(MOBILEFACENET);
  const model = await readOnnx(MOBILEFACENET);
  assert.deepEqual(model.graph.input, { name: 'input', channels: 3, height: 112, width: 112 });
  assert.deepEqual(model.graph.output, { name: 'output', dim: 512 });
  assert.equal(model.irVersion, 7);
  assert.deepEqual(model.opsets, { '': 9 });
  const count = (op: string) => model.graph.nodes.filter((node) => node.op === op).length;
  assert.deepEqual(
    [count('Conv'), count('PRelu'), count('Add'), count('Flatten'), model.graph.nodes.length],
    [50, 33, 12, 1, 96],
  );

  const written = encodeOnnx(model.graph);
  checkWithOnnx({ written });
  const pictures = noise(3 * 3 * 112 * 112);
  const first = pictures.slice(0, 3 * 112 * 112);
  const [expected] = await runOrt(original, first);
  const [one, three] = await runOrt(written, first, pictures);
  assert.deepEqual(one!.dims, [1, 512]);
  assert.equal(largestDifference(one!.data, expected!.data), 0);
  assert.deepEqual(three!.dims, [3, 512], 'the file had batch 1 baked into its Reshape');
  assert.ok(largestDifference(three!.data.slice(0, 512), expected!.data) < 1e-4);

  const again = parseOnnx(written, 'again.onnx');
  assert.deepEqual(again.graph, model.graph);
  assert.deepEqual(encodeOnnx(again.graph), written, 'the same bytes');
});
