/**
 * The built-in backbones in BF16 beside FP32, on a CPU: embeddings, the whole gradient of a step, and what a session
 * refuses. The same with small graphs, also on a GPU, is in native/model/executor_test.cc.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import { type BackboneState, type Graph, type TrainingOptions, TrainingSession } from '@facetrain/native';
import { trainingOptions } from '@facetrain/native/testing/training-fixtures';
import { buildBackbone } from '../backbones/backbone.ts';
import { variedPictures } from '../testing/onnx-oracles.ts';

const PICTURES = 4;

function open(graph: Graph, precision: TrainingOptions['precision'], globalBatchSize = 16): Promise<TrainingSession> {
  const options = trainingOptions();
  return TrainingSession.open({
    ...options,
    graph,
    precision,
    margin: { ...options.margin, m3: 0.4 },
    scale: 64,
    // So the momentum after the first step is the gradient.
    momentum: 0,
    weightDecay: 0,
    gradientClipNorm: null,
    data: { ...options.data, globalBatchSize, flip: false },
  });
}

interface Results {
  embeddings: number[];
  gradient: number[];
  loss: number;
  /** The state after the step, without momentum. */
  tensors: BackboneState['tensors'];
}

async function results(graph: Graph, precision: 'fp32' | 'bf16', batch: number): Promise<Results> {
  const session = await open(graph, precision, batch);
  try {
    assert.equal(session.precision, precision);
    const embeddings = await session.embed(variedPictures(PICTURES, 112, 112));
    const { loss } = await session.step(0, 0.1);
    const { tensors, momentum } = await session.saveBackbone();
    const gradient = Object.values(momentum).flatMap((tensor) => [...tensor.data]);
    return { embeddings: [...embeddings], gradient, loss, tensors };
  } finally {
    await session.close();
  }
}

function cosine(a: number[], b: number[]): number {
  const dot = (x: number[], y: number[]) => x.reduce((sum, value, i) => sum + value * y[i]!, 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

/**
 * The least cosine of the whole gradient of a step. With initial weights, mobilefacenet's is ill-conditioned: the signs
 * of its 33 PReLUs change with the rounding of the layers before them. In TF32, whose rounding is an eighth of BF16's,
 * a GPU's gradient is 8 % off.
 */
const GRADIENT = { mobilefacenet: 0.9, iresnet18: 0.998 } as const;
/** Pictures of the step. A processor without instructions for BF16 takes a second for one in iresnet18. */
const BATCH = { mobilefacenet: 16, iresnet18: 8 } as const;

for (const backbone of ['mobilefacenet', 'iresnet18'] as const) {
  test(`${backbone} in BF16 has the embeddings and the gradient of FP32`, async () => {
    const graph = buildBackbone({ backbone, embeddingDim: 512, width: 2, blocks: null, seed: 7 });
    const exact = await results(graph, 'fp32', BATCH[backbone]);
    const low = await results(graph, 'bf16', BATCH[backbone]);
    const embeddings = cosine(low.embeddings, exact.embeddings);
    assert(embeddings >= 0.999 && embeddings < 1, `embeddings: ${embeddings}`);
    const gradient = cosine(low.gradient, exact.gradient);
    assert(gradient >= GRADIENT[backbone] && gradient < 1, `gradient: ${gradient}`);
    assert(Math.abs(low.loss - exact.loss) < 0.01 * exact.loss, `losses ${low.loss}, ${exact.loss}`);
    if (backbone === 'iresnet18') return;
    assert.deepEqual(await results(graph, 'bf16', BATCH[backbone]), low, 'the same result twice');
  });
}

test('a precision that a CPU does not have is refused, when a session opens and later', async () => {
  const graph = buildBackbone({ backbone: 'mobilefacenet', embeddingDim: 8, width: 1, blocks: [1, 1, 1, 1], seed: 7 });
  const refused = (precision: string) => (error: unknown) => {
    assert(error instanceof FacetrainError && error.code === 'InvalidConfig', String(error));
    assert.match(
      error.message,
      new RegExp(`^trainers.precision: ${precision}, and the device is a CPU; Auto, FP32 or`),
    );
    return true;
  };
  await assert.rejects(open(graph, 'tf32'), refused('TF32'));
  await assert.rejects(open(graph, 'fp16'), refused('FP16'));
  const session = await open(graph, 'auto');
  try {
    assert.equal(session.precision, 'fp32');
    await assert.rejects(session.usePrecision('fp16'), refused('FP16'));
    assert.equal(session.precision, 'fp32');
    await session.usePrecision('bf16');
    assert.equal(session.precision, 'bf16');
  } finally {
    await session.close();
  }
});
