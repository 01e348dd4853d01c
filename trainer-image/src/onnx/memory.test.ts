/** What a graph needs, against sums by hand, and refusals before anything is allocated. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { FacetrainError } from '@facetrain/api';
import { GraphBuilder } from '../testing/graph-fixtures.ts';
import { checkEmbeddingMemory, embeddingMemory } from './memory.ts';

/** data [3, 8, 8] -> Conv [5, 8, 8] -> Relu -> Conv [2, 8, 8] -> Flatten [128] -> Gemm [4] */
function network() {
  const b = new GraphBuilder({ height: 8, width: 8 });
  const wide = b.node('Relu', [b.conv('data', 3, 5, 3, { pad: 1 })]);
  return b.graph(b.gemm(b.flatten(b.conv(wide, 5, 2, 3, { pad: 1 })), 128, 4));
}

test('values are there from the node that makes them to the last that reads them', () => {
  const use = embeddingMemory(network(), 7)!;
  // While the Relu runs: its input and its output. The picture is gone.
  assert.deepEqual([use.node.op, use.shape], ['Relu', [7, 5, 8, 8]]);
  assert.equal(use.bytes, 7 * 64 * (5 + 5) * 4);
});

test('a residual sum keeps the value that skips', () => {
  const b = new GraphBuilder({ height: 4, width: 4 });
  const stem = b.conv('data', 3, 8, 1);
  const graph = b.graph(b.flatten(b.node('Add', [b.node('Relu', [b.node('Tanh', [stem])]), stem])));
  assert.equal(embeddingMemory(graph, 1)!.bytes, 3 * 8 * 16 * 4);
});

test('what exceeds the memory that is available is refused with node, size and limit', (t) => {
  // A few weights that ask for 4096 channels of 312 x 312.
  const b = new GraphBuilder({ height: 112, width: 112 });
  const wide = b.node('Conv', ['data', b.values([4096, 3, 1, 1])], { pads: [100, 100, 100, 100] });
  const graph = b.graph(b.gemm(b.flatten(b.node('GlobalAveragePool', [wide])), 4096, 8));
  t.mock.method(process, 'availableMemory', () => 8 * 2 ** 30);
  const refused = (doing: RegExp) => (error: FacetrainError) => {
    assert.deepEqual([error.code, error.exitCode], ['InsufficientMemory', 2]);
    assert.match(error.message, /^wide\.onnx: node "Conv_0" \(Conv\): /);
    assert.match(error.message, doing);
    assert.match(error.message, /the 8\.0 GiB that are available/);
    return true;
  };
  assert.throws(() => checkEmbeddingMemory(graph, 'wide.onnx', 32), refused(/embedding 32 pictures needs 47\.5 GiB/));
  checkEmbeddingMemory(graph, 'wide.onnx', 4);
});
