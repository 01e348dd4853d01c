/**
 * Fixtures of the training tests: a net that is small enough for many steps, options that train it on the pictures of
 * examples/lfw-small, and ranks as child processes.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { exampleFaces } from '../../../hack/lib/paths.mjs';
import type { TrainingOptions } from '../training.ts';
import type { Graph, Tensor } from '../types.ts';

export const DIM = 16;

/** Deterministic values, uniform with the variance of He's initialization (2 / fanIn). */
function weights(fanIn: number, ...dims: number[]): Tensor<Float32Array> {
  let state = fanIn;
  const data = Float32Array.from({ length: dims.reduce((product, dim) => product * dim, 1) }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 31 - 1) * Math.sqrt(6 / fanIn);
  });
  return { dims, data };
}

const filled = (value: number, ...dims: number[]): Tensor<Float32Array> => ({
  dims,
  data: new Float32Array(dims[0]!).fill(value),
});

/**
 * Two convolutions and a fully connected layer to DIM numbers. With `batchNorm`, a batch norm follows the first
 * convolution and another, whose gamma is not trained, ends the net.
 */
export function tinyNet({ batchNorm = false } = {}): Graph {
  const norm = (name: string, channels: number) => ({
    [`${name}.weight`]: filled(1, channels),
    [`${name}.bias`]: filled(0, channels),
    [`${name}.mean`]: filled(0, channels),
    [`${name}.var`]: filled(1, channels),
  });
  const norms = { ...norm('norm1', 8), ...norm('norm2', DIM) };
  const node = (name: string, op: string, inputs: string[], attributes = {}) => ({
    name,
    op,
    inputs,
    outputs: [name],
    attributes,
  });
  const normNode = (name: string, input: string) =>
    node(name, 'BatchNormalization', [input, ...['weight', 'bias', 'mean', 'var'].map((part) => `${name}.${part}`)]);
  return {
    input: { name: 'data', channels: 3, height: 112, width: 112 },
    output: { name: batchNorm ? 'norm2' : 'fc', dim: DIM },
    nodes: [
      node('conv1', 'Conv', ['data', 'conv1.weight', 'conv1.bias'], { strides: [8, 8] }),
      ...(batchNorm ? [normNode('norm1', 'conv1')] : []),
      node('prelu', 'PRelu', [batchNorm ? 'norm1' : 'conv1', 'prelu.slope']),
      node('conv2', 'Conv', ['prelu', 'conv2.weight'], { strides: [4, 4], pads: [1, 1, 1, 1] }),
      node('flatten', 'Flatten', ['conv2']),
      node('fc', 'Gemm', ['flatten', 'fc.weight'], { transB: 1 }),
      ...(batchNorm ? [normNode('norm2', 'fc')] : []),
    ],
    initializers: {
      'conv1.weight': weights(192, 8, 3, 8, 8),
      'conv1.bias': filled(0.1, 8),
      'prelu.slope': { dims: [8, 1, 1], data: new Float32Array(8).fill(0.25) },
      'conv2.weight': weights(128, 16, 8, 4, 4),
      'fc.weight': weights(256, DIM, 256),
      ...(batchNorm ? norms : {}),
    },
  };
}

export function trainingOptions(options: Partial<TrainingOptions> = {}): TrainingOptions {
  return {
    graph: tinyNet(),
    seed: 3,
    numClasses: 40,
    margin: { form: 'combined', m1: 1, m2: 0, m3: 0.2, m: 0, h: 0 },
    gradient: 'exact',
    scale: 16,
    sampleRate: 1,
    sampleRateChanges: [],
    interclassFilter: null,
    rowsPrecision: 'fp32',
    rowsPlacement: 'device',
    rowsMemory: { deviceBytes: 0, hostBytes: 0 },
    rowsOptimizer: 'sgd',
    rowUpdate: 'lazy',
    rowsRateFactor: 1,
    momentum: 0.9,
    weightDecay: 5e-4,
    gradientClipNorm: 5,
    microBatchSize: null,
    checkpointActivations: false,
    syncBatchNorm: false,
    precision: 'auto',
    deterministic: true,
    data: {
      directory: exampleFaces,
      globalBatchSize: 32,
      flip: true,
      shift: 0,
      cropProbability: 0,
      lowResolutionProbability: 0,
      colorJitterProbability: 0,
      channelOrder: 'rgb',
      loaderThreads: 1,
      maxBadPictures: 0,
    },
    comm: {
      rank: 0,
      size: 1,
      gang: 'test',
      localRank: 0,
      localSize: 1,
      masterAddr: '127.0.0.1',
      masterPort: 0,
      rendezvousTimeoutMs: 30_000,
      collectiveTimeoutMs: 30_000,
    },
    computeThreads: 1,
    device: 'cpu',
    ...options,
  };
}

export interface Child {
  process: ChildProcess;
  /** Resolves when the process has sent its message that training has begun, or when it has ended. */
  ready: Promise<unknown>;
  /** Exit code or signal, and the output. */
  ended: Promise<{ code: number | null; signal: string | null; output: string; errors: string }>;
}

/** Runs a scenario of rank-process.ts in a child process, which is killed after `limitMs`. */
export function startRank(scenario: string, { rank = 0, size = 1, port = 0, limitMs = 60_000 } = {}): Child {
  const child = spawn(
    process.execPath,
    [join(import.meta.dirname, 'rank-process.ts'), scenario, ...[rank, size, port].map(String)],
    {
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
      timeout: limitMs,
      killSignal: 'SIGKILL',
    },
  );
  const ended = Promise.all([once(child, 'close'), text(child.stdout!), text(child.stderr!)]).then(
    ([[code, signal], output, errors]) => ({ code, signal, output, errors }),
  );
  return { process: child, ready: Promise.race([once(child, 'message'), ended]), ended };
}
