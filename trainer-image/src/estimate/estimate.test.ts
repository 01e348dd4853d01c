/** The estimates beside sums by hand, beside the tables of docs/benchmarks.md, and beside a real process. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { promisify } from 'node:util';
import type { BACKBONES, FacetrainError, Precision } from '@facetrain/api';
import { exampleFaces, root } from '../../../hack/lib/paths.mjs';
import { buildBackbone } from '../backbones/backbone.ts';
import { GraphBuilder } from '../testing/graph-fixtures.ts';
import { adviceFor } from './advice.ts';
import { type BackboneCost, backboneCost } from './backbone-cost.ts';
import { DEVICE_KINDS } from './device-kinds.ts';
import { fittingChanges, lacking, needsOf, type PlannedJob } from './fitting.ts';
import { type Machines, stepTime } from './step-time.ts';
import {
  checkTrainingMemory,
  keptBytesOfStep,
  leastMachineBytes,
  sumOf,
  type TrainingFacts,
  trainingMemory,
  usableBytes,
} from './training-memory.ts';

const GIB = 2 ** 30;
const shapesOf = (backbone: (typeof BACKBONES)[number]) =>
  buildBackbone({ backbone, embeddingDim: 512, width: 2, blocks: null, seed: null });
const iresnet50 = backboneCost(shapesOf('iresnet50'));
const mobilefacenet = backboneCost(shapesOf('mobilefacenet'));
const iresnet18 = backboneCost(shapesOf('iresnet18'));

const onH100: TrainingFacts = {
  backbone: iresnet50,
  embeddingDim: 512,
  numClasses: 1505,
  globalBatchSize: 256,
  replicas: 1,
  ranksPerPod: 1,
  maxReplicas: null,
  microBatchSize: null,
  syncBatchNorm: false,
  checkpointActivations: false,
  sampleRate: 1,
  sampleRateChanges: false,
  rowsPrecision: 'fp32',
  rowsOptimizer: 'sgd',
  rowsPlacement: 'device',
  rowUpdate: 'lazy',
  keepsSteps: false,
  device: 'cuda',
  precision: 'bf16',
};
const h100: Machines = {
  kind: DEVICE_KINDS.h100,
  threads: 1,
  ranksPerMachine: 8,
  networkBytesPerSecond: 12.5e9,
  loaderThreads: 16,
};
const cpu: Machines = { ...h100, kind: DEVICE_KINDS.cpu, threads: 2, ranksPerMachine: 1 };

/** A job on a GPU with so many bytes. */
const jobIn = (deviceBytes: number, facts: TrainingFacts, other: Partial<PlannedJob['room']> = {}): PlannedJob => ({
  facts,
  isPlacementAuto: false,
  keep: 3,
  keepBest: 0,
  room: { deviceBytes, hostBytes: null, storageBytes: null, limit: null, isShared: false, ...other },
});
const benchmarks = await readFile(join(root, 'docs', 'benchmarks.md'), 'utf8');

/** @param tolerance share of `want` */
function assertNear(found: number, want: number, tolerance: number, what: string): void {
  const off = found / want - 1;
  assert.ok(Math.abs(off) <= tolerance, `${what}: ${found.toPrecision(4)} is ${(100 * off).toFixed(1)} % off ${want}`);
}

describe('a backbone', () => {
  test('keeps the inputs of the operators that learn', () => {
    const b = new GraphBuilder({ height: 8, width: 8 });
    const wide = b.node('Relu', [b.conv('data', 3, 5, 3, { pad: 1 })]);
    const cost = backboneCost(b.graph(b.gemm(b.flatten(b.conv(wide, 5, 2, 3, { pad: 1 })), 128, 4)));
    assert.equal(cost.kept, 64 * (3 + 5 + 2));
    assert.deepEqual(cost.keeper?.shape, [1, 5, 8, 8]);
    assert.equal(cost.largest, 64 * 5);
  });

  test('does not keep what a batch norm hands to the PReLU or the sum that it is computed with', () => {
    const b = new GraphBuilder({ height: 4, width: 4 });
    const stem = b.conv('data', 3, 8, 1);
    const norm = b.batchNorm(stem, 8);
    const prelu = b.node('PRelu', [norm, b.values([8, 1, 1])]);
    const graph = b.graph(b.flatten(b.node('Add', [b.batchNorm(b.conv(prelu, 8, 8, 1), 8), stem])));
    // The picture, the stem's output (batch norm), the PReLU's output (conv), the second conv's output (batch norm).
    assert.equal(backboneCost(graph).kept, 16 * (3 + 8 + 8 + 8));
  });

  test('without values of its weights it costs the same', () => {
    const options = { backbone: 'mobilefacenet', embeddingDim: 512, width: 2, blocks: null } as const;
    assert.deepEqual(backboneCost(buildBackbone({ ...options, seed: 3 })), mobilefacenet);
  });

  test('has no gradient and no momentum of running statistics, nor of the gamma that ends it', () => {
    const running = Object.entries(shapesOf('iresnet50').initializers).filter(([name]) => name.includes('.running_'));
    const statistics = running.reduce((sum, [, { dims }]) => sum + dims[0]!, 0);
    assert.equal(iresnet50.statistics, statistics + 512);
  });
});

/** The row of a table in docs/benchmarks.md has to have this cell, so that figures here follow those there. */
function assertDocumented(cell: string): void {
  assert.ok(benchmarks.includes(cell), `docs/benchmarks.md has no "${cell}" any more: take over the new figure here`);
}

describe('Partial FC on an H100, as docs/benchmarks.md has it', () => {
  const cases: [cell: string, changes: Partial<TrainingFacts>, ms: number, gib: number | null][] = [
    ['1.0 ms, 0.9 GiB', { numClasses: 100_000, globalBatchSize: 512 }, 0.95, 0.9],
    ['1.4 to 1.6 ms, 4.5 GiB', { numClasses: 1e6, globalBatchSize: 1024, sampleRate: 0.1 }, 1.4, 4.5],
    ['1.2 ms, 2.6 GiB', { numClasses: 1e6, globalBatchSize: 1024, sampleRate: 0.1, rowsPrecision: 'bf16' }, 1.2, 2.6],
    ['11.9 ms, 8.8 GiB', { numClasses: 1e6, globalBatchSize: 1024 }, 11.9, 8.8],
    ['10.3 ms, 6.9 GiB', { numClasses: 1e6, globalBatchSize: 1024, rowsPrecision: 'bf16' }, 10.3, 6.9],
    ['5.1 ms without waits, 17 GiB', { numClasses: 4e6, globalBatchSize: 1024, sampleRate: 0.1 }, 5.1, 17],
    ['12.5 ms, 43 GiB', { numClasses: 1e7, globalBatchSize: 1024, sampleRate: 0.1 }, 12.5, 43],
    ['10.9 ms, 24.0 GiB', { numClasses: 1e7, globalBatchSize: 1024, sampleRate: 0.1, rowsPrecision: 'bf16' }, 10.9, 24],
    ['4.2 ms (C=100k)', { numClasses: 100_000, globalBatchSize: 512, precision: 'fp32' }, 4.2, null],
    ['7.5 ms (C=1M, r=0.1)', { numClasses: 1e6, globalBatchSize: 1024, sampleRate: 0.1, precision: 'fp32' }, 7.5, null],
  ];
  for (const [cell, changes, ms, gib] of cases)
    test(cell, () => {
      assertDocumented(cell);
      const facts = { ...onH100, ...changes };
      assertNear(1000 * stepTime(facts, h100).stages.head, ms, 0.1, 'milliseconds');
      if (gib === null) return;
      const ofHead = /^(class centres|momentum of class|gradient of sampled|sampled|logits|gathered)/;
      const parts = trainingMemory(facts).device.filter(({ name }) => ofHead.test(name));
      // The table was measured when the gradient of the former step was still there while the next was made.
      const former = parts.find(({ name }) => name === 'gradient of sampled rows')!.bytes;
      assertNear((sumOf(parts) + former) / GIB, gib, 0.05, 'GiB');
    });
});

describe('Partial FC on a CPU, as docs/benchmarks.md has it', () => {
  const cases: [cell: string, numClasses: number, sampleRate: number, ms: { fp32: number; bf16: number }][] = [
    ['| C=100k, r=0.1 | 54 ms | 35 ms |', 100_000, 0.1, { fp32: 54, bf16: 35 }],
    ['| C=100k, r=1 | 459 ms | 298 ms |', 100_000, 1, { fp32: 459, bf16: 298 }],
    ['| C=1M, r=0.1 | 472 ms | 308 ms |', 1_000_000, 0.1, { fp32: 472, bf16: 308 }],
  ];
  for (const [cell, numClasses, sampleRate, ms] of cases)
    test(cell, () => {
      assertDocumented(cell);
      for (const precision of ['fp32', 'bf16'] as const) {
        const facts = { ...onH100, device: 'cpu' as const, numClasses, sampleRate, precision };
        assertNear(1000 * stepTime(facts, cpu).stages.head, ms[precision], 0.1, `milliseconds in ${precision}`);
      }
    });
});

describe('training a backbone on a CPU, as docs/benchmarks.md has it', () => {
  const cases: [cell: string, backbone: BackboneCost, batch: number, threads: number, fp32: number, bf16: number][] = [
    ['| mobilefacenet, B=16, one thread | 604 | 361 |', mobilefacenet, 16, 1, 604, 361],
    ['| mobilefacenet, B=32, two threads | 729 | 424 |', mobilefacenet, 32, 2, 729, 424],
    ['| iresnet50, B=8, one thread | 2,989 | 1,493 |', iresnet50, 8, 1, 2989, 1493],
  ];
  for (const [cell, backbone, globalBatchSize, threads, fp32, bf16] of cases)
    test(cell, () => {
      assertDocumented(cell);
      for (const [precision, ms] of Object.entries({ fp32, bf16 }) as ['fp32' | 'bf16', number][]) {
        const facts = { ...onH100, device: 'cpu' as const, backbone, globalBatchSize, precision };
        const { forward, backward } = stepTime(facts, { ...cpu, threads }).stages;
        // Coarser than on a GPU: caches, and memory that threads share, are no part of the model.
        assertNear(1000 * (forward + backward), ms, 0.25, `milliseconds in ${precision}`);
      }
    });
});

describe('class centres on a CPU', () => {
  const facts: TrainingFacts = {
    ...onH100,
    backbone: mobilefacenet,
    numClasses: 1e6,
    globalBatchSize: 64,
    sampleRate: 0.1,
    device: 'cpu',
    precision: 'fp32',
  };
  const headOf = (changes: Partial<TrainingFacts>) => stepTime({ ...facts, ...changes }, cpu).stages.head;
  const ms = (changes: Partial<TrainingFacts>, than: Partial<TrainingFacts> = {}) =>
    1000 * (headOf(changes) - headOf(than));
  const rows = 100_000 + 64;
  // Bytes a millisecond, and nanoseconds on two threads.
  const ofBytes = (bytes: number) => (rows * bytes) / (2 * 8e6);
  const ofHashes = (nanoseconds: number) => nanoseconds / 2 / 1e6;

  test('take as long as what their optimizer keeps has bytes', () => {
    assertNear(ms({ rowsOptimizer: 'adamw' }), ofBytes(2 * (2048 + 4)), 1e-6, 'AdamW, ms more than SGD');
    assertNear(ms({}, { rowsOptimizer: 'adagrad' }), ofBytes(2 * (2048 - 4)), 1e-6, 'SGD, ms more than AdaGrad');
  });
  test('are rounded to BF16 by a hash', () => {
    const [bytes, hashes] = [ofBytes(-(1024 + 2 * 2048)), ofHashes(rows * 2 * 512 * 0.3)];
    assertNear(ms({ rowsPrecision: 'bf16' }), bytes + hashes, 1e-6, 'ms more');
  });
  test('catch up with dense updates, and are copied where they are on the host', () => {
    assertNear(ms({ rowUpdate: 'dense' }), ofBytes(2 * 4096), 1e-6, 'dense, ms more than lazy');
    assert.equal(ms({ rowUpdate: 'dense', sampleRate: 1 }, { sampleRate: 1 }), 0);
    assertNear(ms({ rowsPlacement: 'host' }), ofBytes(4 * 4096), 1e-6, 'host, ms more than device');
    assert.equal(ms({ rowsPlacement: 'host', sampleRate: 1 }, { sampleRate: 1 }), 0);
  });
  test('are chosen from all by a hash', () => {
    const twice = { numClasses: 2e6, sampleRate: 0.05 };
    assertNear(ms(twice), ofHashes(1e6 * 1.5), 1e-3, 'ms more for a million more, of which as many are sampled');
  });
  test('of ten million identities, as docs/benchmarks.md has it', () => {
    const row = /\| Partial FC of a step \| (\d\.\d+) s \| (\d\.\d+) s by itself/.exec(benchmarks);
    const [planned, measured] = row!.slice(1).map(Number) as [number, number];
    const tenMillion = { numClasses: 1e7, sampleRate: 0.01, rowsPrecision: 'bf16', rowsOptimizer: 'adagrad' } as const;
    assertNear(headOf(tenMillion), planned, 0.02, 'seconds');
    assertNear(planned, measured, 0.15, 'planned');
  });
});

describe('training a backbone on an H100, as docs/benchmarks.md has it', () => {
  const cases: [cell: string, changes: Partial<TrainingFacts>, imagesPerSecond: number][] = [
    ['5,872 / 5,966 / 3,015', { globalBatchSize: 128 }, 5872],
    ['5,872 / 5,966 / 3,015', { globalBatchSize: 128, precision: 'fp16' }, 5966],
    ['5,872 / 5,966 / 3,015', { globalBatchSize: 128, precision: 'tf32' }, 3015],
    ['847 in FP32', { globalBatchSize: 128, precision: 'fp32' }, 847],
    ['6,762 / 6,800 / 3,219', {}, 6762],
    ['6,762 / 6,800 / 3,219', { precision: 'fp16' }, 6800],
    ['6,762 / 6,800 / 3,219', { precision: 'tf32' }, 3219],
    ['856 in FP32', { precision: 'fp32' }, 856],
    ['8,443 / 8,628', { backbone: mobilefacenet }, 8443],
    ['8,443 / 8,628', { backbone: mobilefacenet, precision: 'fp16' }, 8628],
  ];
  for (const [cell, changes, want] of cases)
    test(`${want} images/s`, () => {
      assertDocumented(cell);
      const facts = { ...onH100, ...changes };
      const { forward, backward } = stepTime(facts, h100).stages;
      assertNear(facts.globalBatchSize / (forward + backward), want, 0.1, 'images/s');
    });

  test('a whole step, with a head of 1,505 classes', () => {
    assertDocumented('BF16 5,420 / 6,181');
    assertNear(stepTime({ ...onH100, globalBatchSize: 128 }, h100).imagesPerSecond, 5420, 0.15, 'images/s');
    assertNear(stepTime(onH100, h100).imagesPerSecond, 6181, 0.15, 'images/s');
  });
});

describe('a process on a CPU takes the memory that the estimate says', () => {
  type Case = [string, BackboneCost, Partial<TrainingFacts>];
  const manyClasses = { globalBatchSize: 16, numClasses: 300_000, sampleRate: 0.1 };
  const cases: Case[] = [
    ...[
      { rowsPrecision: 'fp32', rowsOptimizer: 'sgd' } as const,
      { rowsPrecision: 'bf16', rowsOptimizer: 'sgd', rowsPlacement: 'host', rowUpdate: 'dense' } as const,
      { rowsPrecision: 'fp32', rowsOptimizer: 'adamw' } as const,
      { rowsPrecision: 'bf16', rowsOptimizer: 'adagrad' } as const,
    ].map((rows): Case => ['mobilefacenet', mobilefacenet, { ...rows, ...manyClasses }]),
    // Most of it is the backbone.
    ['iresnet18', iresnet18, { rowsPrecision: 'bf16', globalBatchSize: 4, numClasses: 20_000, sampleRate: 0.1 }],
    ['iresnet50', iresnet50, { rowsPrecision: 'bf16', globalBatchSize: 4, numClasses: 20_000, sampleRate: 0.1 }],
  ];
  for (const [name, backbone, wanted] of cases)
    test([name, ...Object.values(wanted)].join(', '), async () => {
      const script = join(root, 'trainer-image', 'src', 'testing', 'training-memory-process.ts');
      const argument = JSON.stringify({ ...wanted, backbone: name, directory: exampleFaces });
      const { stdout } = await promisify(execFile)(process.execPath, [script, argument]);
      const { atFirst, atLast, withCopy } = JSON.parse(stdout) as Record<'atFirst' | 'atLast' | 'withCopy', number>;
      const facts: TrainingFacts = { ...onH100, ...wanted, backbone, device: 'cpu', precision: 'fp32' };
      const { device, checkpointCopy } = trainingMemory(facts);
      assertNear(sumOf(device), atLast, 0.1, 'bytes');
      assertNear(sumOf(device) + checkpointCopy, withCopy, 0.1, 'bytes with a copy of the state');
      const program = device.find(({ name }) => name === 'program')!.bytes;
      assertNear(program - 4 * backbone.parameters, atFirst, 0.25, 'bytes of the program, without the model');
    });
});

test('steps that are kept in memory: a copy of the class centres, those of a step, two parts of the backbone', () => {
  const facts = { ...onH100, numClasses: 1e6, sampleRate: 0.1, replicas: 4, globalBatchSize: 1024, keepsSteps: true };
  const row = 2 * 4 * 512;
  const sampled = 25_000 + 256;
  const backbone = 4 * (2 * iresnet50.parameters + iresnet50.statistics);
  const kept = trainingMemory(facts).host.find(({ name }) => name === 'steps kept in memory')!.bytes;
  assertNear(kept, (250_000 + sampled) * row + backbone / 2, 0.01, 'bytes');
  assertNear(keptBytesOfStep(facts), sampled * row + backbone / 4, 1e-6, 'bytes of a step');
  const without = { ...facts, keepsSteps: false };
  assert.equal(sumOf(trainingMemory(facts).host) - sumOf(trainingMemory(without).host), kept);
  assert.equal(keptBytesOfStep(without), 0);
  // On a CPU it is memory of the same process; beyond 16 ranks no more of them keep a part of the backbone.
  const onCpu = trainingMemory({ ...facts, device: 'cpu', precision: 'fp32', replicas: 64 }).device;
  const rows = 15_625 + 1579 * (1 + 1 / 16);
  assertNear(
    onCpu.find(({ name }) => name === 'steps kept in memory')!.bytes,
    rows * row + backbone / 8,
    0.01,
    'bytes',
  );
});

describe('class centres in host memory', () => {
  const many = { ...onH100, numClasses: 4e7, globalBatchSize: 1024, sampleRate: 0.01, rowsPrecision: 'bf16' } as const;
  const onHost = { ...many, rowsPlacement: 'host' } as const;
  const bytesOf = (parts: { name: string; bytes: number }[], name: string) =>
    parts.find((part) => part.name === name)?.bytes;

  test('leave the GPU for what a step needs', () => {
    const [device, host] = [trainingMemory(many), trainingMemory(onHost)];
    for (const [name, bytes] of [
      ['class centres', 4e7 * 1024],
      ['momentum of class centres', 4e7 * 1024],
    ] as const) {
      assert.deepEqual([bytesOf(device.device, name), bytesOf(device.host, name)], [bytes, undefined], name);
      assert.deepEqual([bytesOf(host.device, name), bytesOf(host.host, name)], [undefined, bytes], name);
    }
    assert.equal(sumOf(device.device) - sumOf(host.device), 4e7 * 2048);
    assert.equal(sumOf(host.host) - sumOf(device.host), 4e7 * 2048);
    assert.equal(leastMachineBytes(onHost) - leastMachineBytes(many), 4e7 * 2048);
  });
  test('are read twice and written once over the bus', () => {
    const rows = 400_000 + 1024;
    // Gathered, read with their momentum by the update, and written.
    const seconds = (rows * (1024 + 2048 + 2048)) / h100.kind.hostBytesPerSecond;
    assertNear(stepTime(onHost, h100).seconds - stepTime(many, h100).seconds, seconds, 1e-9, 'seconds');
  });
  test('on a CPU are copies of two steps’ rows beside all of them', () => {
    const facts = { ...onHost, device: 'cpu', precision: 'fp32' } as const;
    const part = bytesOf(trainingMemory(facts).device, 'copies of sampled rows')!;
    assertNear(part, 2 * (400_000 + 1024) * 2048 * (33 / 32), 1e-5, 'bytes');
    assert.equal(bytesOf(trainingMemory({ ...facts, sampleRate: 1 }).device, 'copies of sampled rows'), undefined);
    assert.deepEqual(trainingMemory(facts).host, []);
  });
});

test('92 million identities fit eight GPUs of 32 GiB', () => {
  const facts = { ...onH100, numClasses: 92e6, globalBatchSize: 512, replicas: 8, sampleRate: 0.1 } as const;
  assertNear(sumOf(trainingMemory({ ...facts, rowsPrecision: 'bf16' }).device) / GIB, 28.7, 0.005, 'GiB');
});

test('classes and pictures are divided among the ranks, and the backbone is not', () => {
  const one = { ...onH100, numClasses: 1e6, globalBatchSize: 1024, sampleRate: 0.1 };
  const part = (facts: TrainingFacts, name: string) =>
    trainingMemory(facts).device.find((each) => each.name === name)!.bytes;
  const eight = { ...one, replicas: 8 };
  for (const name of ['class centres', 'momentum of class centres', 'activations'])
    assert.equal(part(eight, name) * 8, part(one, name), name);
  for (const name of ['backbone weights', 'backbone momentum', 'gathered features'])
    assert.equal(part(eight, name), part(one, name), name);
});

test('the collectives of a step have the bytes of their tensors', () => {
  const facts = { ...onH100, globalBatchSize: 1024, replicas: 4 };
  const { collectives } = stepTime(facts, h100);
  const share = 3 / 4;
  assert.deepEqual(
    collectives.map(({ bytes }) => bytes),
    [
      share * 1024 * 515 * 4,
      2 * share * 2 * 1024 * 8,
      share * 1024 * 512 * 4,
      2 * share * 4 * (iresnet50.parameters + iresnet50.statistics),
    ],
  );
  assert.deepEqual(stepTime({ ...facts, replicas: 1 }, h100).collectives, []);
  // The backward pass hides all of the gradient's but the last bucket, or as much as it lasts; on CPUs sums of
  // micro-batches wait for its end.
  const communication = (changes: Partial<TrainingFacts>, machines = h100) => {
    const { stages, collectives: all } = stepTime({ ...facts, ...changes }, machines);
    const total = all.reduce((sum, { seconds }) => sum + seconds, 0);
    return { hidden: total - stages.communication, gradient: all.at(-1)!.seconds, backward: stages.backward };
  };
  const beside = communication({});
  assertNear(beside.hidden, beside.gradient * (1 - (8 * 2 ** 20) / (4 * iresnet50.parameters)), 1e-9, 'fast');
  const slow = communication({ replicas: 16 }, { ...h100, networkBytesPerSecond: 1e8 });
  assertNear(slow.hidden, slow.backward, 1e-9, 'slow');
  const onCpu = { device: 'cpu', precision: 'fp32' } as const;
  assert.ok(communication({ ...onCpu }, cpu).hidden > 0);
  assert.equal(communication({ ...onCpu, microBatchSize: 64 }, cpu).hidden, 0);
  // Beyond one machine the network carries them.
  const far = stepTime({ ...facts, replicas: 16 }, h100);
  assert.ok(far.stages.communication > 5 * stepTime({ ...facts, replicas: 8 }, h100).stages.communication);
});

describe('advice', () => {
  const changesOf = (changes: Partial<TrainingFacts>, machines = h100) =>
    adviceFor({ ...onH100, ...changes }, machines, null).map(({ change }) => change);

  test('says nothing where nothing is to be gained', () => {
    assert.deepEqual(changesOf({}), []);
    assert.deepEqual(changesOf({ numClasses: 1e6, sampleRate: 0.1, rowsPrecision: 'bf16', globalBatchSize: 1024 }), []);
  });
  test('a tenth of the negatives where Partial FC is a large part of the step', () => {
    assert.ok(changesOf({ numClasses: 10_000_000 }).some((change) => change['loss.sampleRate'] === 0.1));
  });
  test('nothing about a rate that the manifest gives by epoch', () => {
    assert.deepEqual(changesOf({ numClasses: 10_000, sampleRate: 0.1, sampleRateChanges: true }), []);
    const facts = { ...onH100, numClasses: 4e6, globalBatchSize: 1024, sampleRateChanges: true };
    const usable = sumOf(trainingMemory({ ...facts, sampleRate: 0.1 }).device);
    const found = fittingChanges(jobIn(usable, facts), h100.kind).find(({ change }) => 'loss.sampleRate' in change);
    assert.deepEqual(found?.change, { 'loss.sampleRate': 0.1, 'loss.sampleRateChanges': [] });
  });
  test('all negatives where there are few', () => {
    assert.deepEqual(changesOf({ numClasses: 10_000, sampleRate: 0.1 }), [{ 'loss.sampleRate': 1 }]);
  });
  test('BF16 in place of FP32 on a GPU', () => {
    assert.deepEqual(changesOf({ precision: 'fp32' }), [{ 'trainers.precision': 'BF16' }]);
    assert.deepEqual(changesOf({ precision: 'fp32', device: 'cpu' }, cpu), []);
  });
  test('nothing about optimizers, which all devices have', () => {
    assert.deepEqual(changesOf({ rowsOptimizer: 'adagrad' }), []);
    assert.deepEqual(changesOf({ rowUpdate: 'dense' }), []);
  });
  test('BF16 rows where class centres are a large part of the memory', () => {
    assert.deepEqual(changesOf({ numClasses: 4e6, sampleRate: 0.1 }), [{ 'loss.rows.precision': 'BF16' }]);
  });
  test('more threads where decoding takes longer than the step', () => {
    const [change] = changesOf(
      { precision: 'bf16' as Precision, backbone: mobilefacenet },
      { ...h100, loaderThreads: 0.25 },
    );
    assert.ok(Number(change?.['trainers.loaderThreads']) >= 0.5);
  });

  test('whole micro-batches, and one for each trainer', () => {
    const facts = { ...onH100, numClasses: 2e7, sampleRate: 0.1, globalBatchSize: 1200, microBatchSize: 400 };
    for (const [field, fitting] of [
      ['trainers.replicas', { replicas: 4 }],
      ['globalBatchSize', { globalBatchSize: 600 }],
    ] as const) {
      const usable = sumOf(trainingMemory({ ...facts, ...fitting }).device);
      const found = (changes: Partial<TrainingFacts>) =>
        fittingChanges(jobIn(usable, { ...facts, ...changes }), h100.kind).some(({ change }) => field in change);
      assert.deepEqual([found({}), found({ microBatchSize: 200 })], [false, true], field);
    }
  });

  test('nothing that the manifest refuses: beyond elastic.maxReplicas, or micro-batches with syncBatchNorm', () => {
    const facts = { ...onH100, numClasses: 2e7, sampleRate: 0.1, globalBatchSize: 1024, replicas: 2 };
    const fieldsOf = (changes: Partial<TrainingFacts>, fitting: Partial<TrainingFacts>) =>
      fittingChanges(
        jobIn(sumOf(trainingMemory({ ...facts, ...changes, ...fitting }).device), { ...facts, ...changes }),
        h100.kind,
      )
        .flatMap(({ change }) => Object.keys(change))
        .sort();
    const four = { replicas: 4 };
    assert.ok(fieldsOf({}, four).includes('trainers.replicas'));
    assert.ok(fieldsOf({ maxReplicas: 4 }, four).includes('trainers.replicas'));
    assert.equal(fieldsOf({ maxReplicas: 3 }, four).includes('trainers.replicas'), false);
    const small = { microBatchSize: 256 };
    assert.ok(fieldsOf({}, small).includes('trainers.microBatchSize'));
    assert.equal(fieldsOf({ syncBatchNorm: true }, small).includes('trainers.microBatchSize'), false);
    assert.equal(fieldsOf({ maxReplicas: 1024 }, small).includes('trainers.microBatchSize'), false);
    const half = { globalBatchSize: 512 };
    assert.ok(fieldsOf({ maxReplicas: 512 }, half).includes('globalBatchSize'));
    assert.equal(fieldsOf({ maxReplicas: 513 }, half).includes('globalBatchSize'), false);
    const fixed = { syncBatchNorm: true, microBatchSize: 512 };
    assert.equal(fieldsOf(fixed, { ...four, ...half }).includes('globalBatchSize'), false);
    assert.equal(fieldsOf(fixed, { ...four, ...half }).includes('trainers.replicas'), false);
  });

  /** The job after a change by its fields. */
  function changedBy(job: PlannedJob, change: Record<string, unknown>): PlannedJob {
    const fields: Record<string, keyof TrainingFacts> = {
      'loss.rows.precision': 'rowsPrecision',
      'loss.rows.optimizer': 'rowsOptimizer',
      'loss.rows.placement': 'rowsPlacement',
      'loss.sampleRate': 'sampleRate',
      'trainers.replicas': 'replicas',
      'trainers.microBatchSize': 'microBatchSize',
      'model.checkpointActivations': 'checkpointActivations',
      globalBatchSize: 'globalBatchSize',
    };
    const facts = Object.entries(change).flatMap(([field, value]) =>
      fields[field] ? [[fields[field], typeof value === 'string' ? value.toLowerCase() : value]] : [],
    );
    const { 'checkpoint.keep': keep = job.keep, 'checkpoint.keepBest': keepBest = job.keepBest } = change;
    return {
      ...job,
      facts: { ...job.facts, ...Object.fromEntries(facts) },
      keep: Number(keep),
      keepBest: Number(keepBest),
    };
  }
  /** Advice of which each, and nothing less than each, makes the job fit. */
  function fittingOf(job: PlannedJob): Record<string, unknown>[] {
    assert.notEqual(lacking(job).length, 0);
    const found = fittingChanges(job, h100.kind).filter(({ change }) => Object.keys(change).length > 0);
    for (const { change, text } of found) {
      if ('trainers.resources.limits.memory' in change) continue;
      assert.deepEqual(lacking(changedBy(job, change)), [], text);
      for (const field of Object.keys(change).filter((name) => name !== 'loss.rows.learningRate')) {
        const { [field]: _, ...rest } = change;
        assert.notDeepEqual(lacking(changedBy(job, rest)), [], `${text}, also without ${field}`);
      }
    }
    return found.map(({ change }) => change);
  }

  test('what would fit, if the job does not; each of it does fit', () => {
    const facts = { ...onH100, numClasses: 2e7, sampleRate: 0.1, globalBatchSize: 1024 };
    const found = fittingOf(jobIn(usableBytes(DEVICE_KINDS.h100)!, facts));
    assert.ok(found.some((change) => change['trainers.replicas'] === 2));
    assert.ok(found.some((change) => change['loss.rows.optimizer'] === 'AdaGrad'));
  });

  test('several changes together, as few as possible, where none alone is enough', () => {
    // Ten million identities with all defaults, for a GPU of 24 GB.
    const facts = { ...onH100, numClasses: 1e7, globalBatchSize: 1024 };
    const found = fittingOf(jobIn(23 * GIB, facts));
    const together = found.filter((change) => !('trainers.replicas' in change));
    assert.ok(together.length > 0);
    for (const change of together) assert.ok(Object.keys(change).length > 1, JSON.stringify(change));
    assert.ok(found.some((change) => change['trainers.replicas'] === 8));
  });

  test('AdaGrad for 10^8 identities on an H100 whose machine has 128 GiB', () => {
    const facts = {
      ...onH100,
      numClasses: 1e8,
      globalBatchSize: 1024,
      sampleRate: 0.01,
      rowsPrecision: 'bf16',
    } as const;
    const room = { hostBytes: 128 * GIB, limit: 'hostBytes' } as const;
    const job = { ...jobIn(usableBytes(DEVICE_KINDS.h100)!, facts, room), isPlacementAuto: true };
    const found = fittingOf(job);
    assert.deepEqual(
      found.filter((change) => !('trainers.replicas' in change)),
      [
        { 'loss.rows.optimizer': 'AdaGrad', 'loss.rows.learningRate': 0.01 },
        { 'trainers.resources.limits.memory': '195Gi' },
      ],
    );
    const { hostBytes } = needsOf({ ...job, facts: { ...facts, rowsOptimizer: 'adagrad' } });
    assertNear(hostBytes / GIB, 99, 0.005, 'GiB of the host, as decision 0061 says');
  });

  test('fewer checkpoints where the disk has no room for them', () => {
    const facts = { ...onH100, numClasses: 1e6, sampleRate: 0.1 };
    const { storageBytes } = needsOf({ ...jobIn(79 * GIB, facts), keep: 2 });
    const found = fittingOf({ ...jobIn(79 * GIB, facts, { storageBytes }), keep: 4 });
    assert.deepEqual(found, [
      { 'loss.rows.precision': 'BF16' },
      { 'loss.rows.optimizer': 'AdaGrad', 'loss.rows.learningRate': 0.01 },
      { 'checkpoint.keep': 2 },
    ]);
  });

  test('no more trainers for a job whose trainers share this machine', () => {
    const facts = { ...onH100, numClasses: 1e7, device: 'cpu', precision: 'fp32', globalBatchSize: 64 } as const;
    const found = fittingOf(jobIn(23 * GIB, facts, { isShared: true }));
    assert.ok(found.length > 0 && found.every((change) => !('trainers.replicas' in change)));
  });

  test('a larger limit where it is the limit of a container that is too small', () => {
    const facts = { ...onH100, numClasses: 1e6, device: 'cpu', precision: 'fp32', globalBatchSize: 64 } as const;
    const found = fittingOf(jobIn(4 * GIB, facts, { limit: 'deviceBytes' }));
    const { deviceBytes } = needsOf(jobIn(4 * GIB, facts));
    const limit = `${Math.ceil(deviceBytes / GIB)}Gi`;
    assert.ok(found.some((change) => change['trainers.resources.limits.memory'] === limit));
  });

  test('what it takes at least, where nothing helps', () => {
    const [advice, ...others] = fittingChanges(
      jobIn(GIB / 2, { ...onH100, numClasses: 1e9, maxReplicas: 1 }),
      h100.kind,
    );
    assert.deepEqual([advice?.change, others], [{}, []]);
    assert.match(advice!.text, /^another device: .*\d GiB$/);
  });
});

describe('the check before a training', () => {
  const facts: TrainingFacts = { ...onH100, device: 'cpu', precision: 'fp32', backbone: mobilefacenet };
  const refusal = (changes: Partial<TrainingFacts>, ranks = 1) => {
    try {
      checkTrainingMemory({ ...facts, ...changes }, 'mine.onnx', ranks);
      return undefined;
    } catch (error) {
      return error as FacetrainError;
    }
  };

  test('names the node whose value takes most, or the class centres', (t) => {
    t.mock.method(process, 'availableMemory', () => 16 * GIB);
    assert.equal(refusal({}), undefined);
    const activations = refusal({ globalBatchSize: 1024 });
    assert.deepEqual([activations?.code, activations?.exitCode], ['InsufficientMemory', 2]);
    assert.match(activations!.message, /^mine\.onnx: node ".+" \(.+\): .*a value of \[1024, 128, 56, 56\].*16\.0 GiB/);
    assert.equal(refusal({ globalBatchSize: 1024, microBatchSize: 128 }), undefined);
    assert.equal(refusal({ globalBatchSize: 1024, checkpointActivations: true }), undefined);
    const centres = refusal({ numClasses: 10_000_000 });
    assert.match(centres!.message, /^class centres: training on 256 pictures with 10,000,000 classes needs 65\.\d GiB/);
    assert.equal(refusal({ numClasses: 1_000_000, sampleRate: 0.1 }), undefined);
    assert.match(refusal({ numClasses: 1_000_000, sampleRate: 0.1 }, 4)!.message, /each of the 4 trainers/);
  });
  test('counts class centres of a GPU that are in host memory', (t) => {
    t.mock.method(process, 'availableMemory', () => 16 * GIB);
    const onGpu = { device: 'cuda', precision: 'bf16', rowsPlacement: 'host', sampleRate: 0.01 } as const;
    assert.equal(refusal({ ...onGpu, numClasses: 3_000_000 }), undefined);
    const message = refusal({ ...onGpu, numClasses: 5_000_000 })!.message;
    assert.match(
      message,
      /^class centres: training on .* needs 19\.\d GiB at least of the machine’s memory, 9\.5 GiB of it/,
    );
    assert.match(message, /loss\.rows\.placement Device/);
    // Activations are in the GPU's memory.
    assert.equal(refusal({ ...onGpu, numClasses: 1000, globalBatchSize: 8192 }), undefined);
  });
  test('counts dense updates on the GPU, also of class centres on the host', () => {
    const facts: TrainingFacts = { ...onH100, rowsPlacement: 'host', sampleRate: 0.1 };
    const [lazy, dense] = (['lazy', 'dense'] as const).map((rowUpdate) => trainingMemory({ ...facts, rowUpdate }));
    assert.equal(sumOf(dense!.device) - sumOf(lazy!.device), 4 * facts.numClasses);
    assert.equal(sumOf(dense!.host), sumOf(lazy!.host));
  });
});
