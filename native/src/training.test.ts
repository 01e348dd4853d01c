/**
 * A training session, alone and with other ranks: what a step does to weights and momentum, that training lowers the
 * loss, and that a resumed run is bit for bit the uninterrupted one.
 */

import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { FacetrainError, type NormStatistics } from '@facetrain/api';
import { freePorts } from '../../hack/lib/free-ports.mjs';
import { exampleFaces } from '../../hack/lib/paths.mjs';
import { Model } from './model.ts';
import { DIM, startRank, tinyNet, trainingOptions } from './testing/training-fixtures.ts';
import { type BackboneState, capabilities, type Rows, type TrainingOptions, TrainingSession } from './training.ts';

async function withSession<T>(
  options: Partial<TrainingOptions>,
  body: (session: TrainingSession) => Promise<T>,
): Promise<T> {
  const session = await TrainingSession.open(trainingOptions(options));
  try {
    return await body(session);
  } finally {
    await session.close();
  }
}

/** The result of one step from the initial weights, and the backbone's state before and after it. */
const afterStep = (options: Partial<TrainingOptions>, learningRate = 0.1) =>
  withSession(options, async (session) => {
    const before = await session.saveBackbone();
    const result = await session.step(0, learningRate);
    return { before, result, after: await session.saveBackbone() };
  });

function flat(tensors: BackboneState['momentum']): number[] {
  return Object.values(tensors).flatMap(({ data }) => [...data]);
}

/** |actual - expected| <= tolerance * the largest |expected|. */
function assertNear(actual: number[], expected: number[], tolerance = 1e-6): void {
  assert.equal(actual.length, expected.length);
  const largest = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  assert.ok(largest > 0);
  const difference = actual.reduce((most, value, i) => Math.max(most, Math.abs(value - expected[i]!)), 0);
  assert.ok(difference <= tolerance * largest, `values up to ${largest} differ by ${difference}`);
}

const learned = (state: BackboneState) =>
  Object.fromEntries(Object.keys(state.momentum).map((name) => [name, state.tensors[name]!]));
/** Without momentum, decay and clipping the momentum after a step equals the gradient. */
const plain = { momentum: 0, weightDecay: 0, gradientClipNorm: null };

suite('a step', () => {
  test('computes the gradient that finite differences of the loss give', async () => {
    await withSession({ ...plain, graph: tinyNet({ batchNorm: true }) }, async (session) => {
      const first = await session.saveBackbone();
      const rows = await session.saveRows(0, 40);
      const lossWith = async (name: string, index: number, change: number) => {
        const tensors = structuredClone(first.tensors);
        tensors[name]!.data[index]! += change;
        await session.loadBackbone({ tensors, momentum: first.momentum });
        await session.loadRows(rows);
        return (await session.step(0, 0)).loss;
      };
      await session.step(0, 0);
      const gradient = (await session.saveBackbone()).momentum;
      assert.ok(!('norm2.weight' in gradient), 'the last gamma is frozen');
      for (const name of Object.keys(gradient)) {
        const index = gradient[name]!.data.reduce(
          (best, value, i, all) => (Math.abs(value) > Math.abs(all[best]!) ? i : best),
          0,
        );
        const step = 1e-3;
        const difference = ((await lossWith(name, index, step)) - (await lossWith(name, index, -step))) / (2 * step);
        const found = gradient[name]!.data[index]!;
        // The batch norm after conv1 cancels conv1's bias: its gradient is rounding error.
        assert.ok(
          Math.abs(found - difference) < 0.02 * Math.abs(difference) + 1e-3,
          `${name}[${index}]: gradient ${found}, difference ${difference}`,
        );
      }
    });
  });

  test('moves weights as torch.optim.SGD does', async () => {
    const { before, after: noDecay } = await afterStep(plain);
    const gradient = flat(noDecay.momentum);
    const w = flat(learned(before));
    assertNear(
      flat(learned(noDecay)),
      w.map((value, i) => value - 0.1 * gradient[i]!),
    );

    const { after: decayed } = await afterStep({ ...plain, weightDecay: 0.25 });
    assertNear(
      flat(decayed.momentum),
      gradient.map((g, i) => g + 0.25 * w[i]!),
    );

    await withSession({ ...plain, momentum: 0.9 }, async (session) => {
      await session.step(0, 0.1);
      const one = await session.saveBackbone();
      assertNear(flat(one.momentum), gradient);
      await session.step(1, 0);
      const two = flat((await session.saveBackbone()).momentum);
      await session.loadBackbone({
        ...one,
        momentum: Object.fromEntries(
          Object.entries(one.momentum).map(([name, { dims, data }]) => [name, { dims, data: data.map(() => 0) }]),
        ),
      });
      await session.step(1, 0);
      // The second step's momentum is 0.9 times the first one's plus its own gradient. Its learning rate is 0, so the
      // class centres are the same in both runs of it.
      const own = flat((await session.saveBackbone()).momentum);
      assertNear(
        two.map((value, i) => value - own[i]!),
        flat(one.momentum).map((value) => 0.9 * value),
        1e-5,
      );
    });
  });

  test('says where its time went', async () => {
    await withSession({}, async (session) => {
      const start = performance.now();
      const { stageSeconds } = await session.step(0, 0.1);
      const all = (performance.now() - start) / 1000;
      const { communication, ...others } = stageSeconds!;
      assert.deepEqual(Object.keys(others), ['data', 'upload', 'forward', 'head', 'backward', 'update']);
      assert.ok(Object.values(others).every((seconds) => seconds > 0));
      assert.equal(communication, 0, 'there is one rank');
      const sum = Object.values(others).reduce((total, seconds) => total + seconds);
      assert.ok(sum <= all, `${sum} of ${all} s`);
    });
  });

  test('clips the gradient by its norm over all of the backbone', async () => {
    const { result, after } = await afterStep(plain);
    const gradient = flat(after.momentum);
    assertNear([result.gradientNorm], [Math.hypot(...gradient)]);
    const { result: same, after: clipped } = await afterStep({ ...plain, gradientClipNorm: result.gradientNorm / 4 });
    assert.equal(same.gradientNorm, result.gradientNorm);
    assertNear(
      flat(clipped.momentum),
      gradient.map((g) => g / 4),
    );
    const { after: within } = await afterStep({ ...plain, gradientClipNorm: result.gradientNorm * 4 });
    assert.deepEqual(flat(within.momentum), gradient);
  });

  test('moves running statistics by a tenth towards the batch, and leaves the last gamma alone', async () => {
    const { after } = await afterStep({ ...plain, graph: tinyNet({ batchNorm: true }) });
    assert.deepEqual([...after.tensors['norm2.weight']!.data], new Array(DIM).fill(1));
    // Running statistics depend on the forward pass only, not on the learning rate. They start at mean 0, variance 1.
    const { after: unchanged } = await afterStep({ ...plain, graph: tinyNet({ batchNorm: true }) }, 0);
    assert.deepEqual(unchanged.tensors['norm1.mean'], after.tensors['norm1.mean']);
    assert.ok(after.tensors['norm1.var']!.data.every((value) => value > 0.9));
    assert.ok(after.tensors['norm1.mean']!.data.some((value) => Math.abs(value) > 1e-3));
  });
});

test('training lowers the loss, and the exported graph computes the same embeddings', async () => {
  await withSession({ graph: tinyNet({ batchNorm: true }) }, async (session) => {
    assert.equal(session.stepsPerEpoch, 25);
    assert.deepEqual(session.rowRange, { firstRow: 0, rows: 40 });
    const losses: number[] = [];
    for (let step = 0; step < 75; step++) losses.push((await session.step(step, 0.1)).loss);
    const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
    assert.ok(
      mean(losses.slice(-10)) < 0.8 * mean(losses.slice(0, 10)),
      `from ${mean(losses.slice(0, 10))} to ${mean(losses.slice(-10))}`,
    );

    const pictures = {
      count: 3,
      height: 112,
      width: 112,
      channelOrder: 'rgb' as const,
      data: Uint8Array.from({ length: 3 * 112 * 112 * 3 }, (_, i) => (i * 37) % 251),
    };
    const graph = await session.exportGraph();
    assert.notDeepEqual(graph.initializers['norm1.mean'], tinyNet({ batchNorm: true }).initializers['norm1.mean']);
    const model = await Model.open(graph, { computeThreads: 1 });
    assert.deepEqual(await model.embed(pictures, { flip: true }), await session.embed(pictures, { flip: true }));
    await model.close();
  });
});

for (const precision of ['fp32', 'bf16'] as const) {
  test(`a run resumed from saved state is the uninterrupted run, bit for bit, in ${precision}`, async () => {
    const options = { graph: tinyNet({ batchNorm: true }), sampleRate: 0.3, precision };
    const finish = async (session: TrainingSession) => {
      const losses: number[] = [];
      // Steps 24 and 25 are the last of one epoch and the first of the next.
      for (let step = 24; step < 27; step++) losses.push((await session.step(step, 0.05)).loss);
      return { losses, backbone: await session.saveBackbone(), rows: await session.saveRows(0, 40) };
    };
    const { state, rows, uninterrupted } = await withSession(options, async (session) => {
      for (let step = 20; step < 24; step++) await session.step(step, 0.05);
      const saved = {
        state: await session.saveBackbone(),
        rows: [await session.saveRows(0, 13), await session.saveRows(13, 27)],
      };
      return { ...saved, uninterrupted: await finish(session) };
    });
    const resumed = await withSession({ ...options, graph: tinyNet({ batchNorm: true }) }, async (session) => {
      await session.loadBackbone(state);
      for (const part of rows) await session.loadRows(part);
      return await finish(session);
    });
    assert.deepEqual(resumed, uninterrupted);
  });
}

test('rows of bfloat16 are loaded as the numbers that they are', async () => {
  await withSession({}, async (session) => {
    assert.deepEqual(session.rowTensors, [
      { name: 'weight', dtype: 'float32', columns: DIM },
      { name: 'momentum', dtype: 'float32', columns: DIM },
    ]);
    const { tensors } = await session.saveRows(0, 40);
    const upper = (bytes: Uint8Array) => bytes.filter((_, index) => index % 4 >= 2);
    const short = (name: string) => ({ dtype: 'bfloat16' as const, bytes: upper(tensors[name]!.bytes) });
    await session.loadRows({
      firstRow: 0,
      rows: 40,
      tensors: { weight: short('weight'), momentum: short('momentum') },
    });
    const loaded = await session.saveRows(0, 40);
    assert.deepEqual(
      loaded.tensors.weight!.bytes,
      tensors.weight!.bytes.map((byte, index) => (index % 4 >= 2 ? byte : 0)),
    );
  });
});

for (const [rowsOptimizer, state] of [
  ['adamw', ['first_moment', 'second_moment', 'updates']],
  ['adagrad', ['squares']],
] as const) {
  test(`class centres with ${rowsOptimizer} train, and a resumed run is the uninterrupted one`, async () => {
    const options = { rowsOptimizer, rowsRateFactor: 0.1, sampleRate: 0.5 } as const;
    const whole = await withSession(options, async (session) => {
      assert.deepEqual(
        session.rowTensors.map(({ name }) => name),
        ['weight', ...state],
      );
      for (let step = 0; step < 3; step++) await session.step(step, 0.1);
      const saved = { backbone: await session.saveBackbone(), rows: await session.saveRows(0, 40) };
      return { saved, loss: (await session.step(3, 0.1)).loss, rows: await session.saveRows(0, 40) };
    });
    const { backbone, rows } = whole.saved;
    const resumed = await withSession(options, async (session) => {
      await session.loadBackbone(backbone);
      await session.loadRows(rows);
      return { loss: (await session.step(3, 0.1)).loss, rows: await session.saveRows(0, 40) };
    });
    assert.deepEqual(resumed, { loss: whole.loss, rows: whole.rows });

    // The centres alone: the state starts anew, whatever was there.
    await withSession(options, async (session) => {
      await session.step(0, 0.1);
      await session.loadRows({ ...rows, tensors: { weight: rows.tensors.weight! } });
      const { tensors } = await session.saveRows(0, 40);
      assert.deepEqual(tensors.weight, rows.tensors.weight);
      for (const name of state) assert.ok(tensors[name]!.bytes.every((byte) => byte === 0));
    });
  });
}

test('class centres in host memory train to the same numbers, beside a copy of them too', async () => {
  const train = (rowsPlacement: 'host' | 'auto') =>
    withSession({ rowsPlacement, rowsOptimizer: 'adagrad', rowUpdate: 'dense', sampleRate: 0.2 }, async (session) => {
      const losses = [];
      for (let step = 0; step < 4; step++) losses.push((await session.step(step, 0.1)).loss);
      const copy = await session.copyState({ backbone: false });
      for (let step = 4; step < 6; step++) losses.push((await session.step(step, 0.1)).loss);
      const copied = await copy!.saveRows(0, 40);
      await copy!.close();
      return { used: session.rowsPlacement, losses, copied, rows: await session.saveRows(0, 40) };
    });
  const onDevice = await train('auto');
  assert.equal(onDevice.used, 'device');
  assert.notDeepEqual(onDevice.copied, onDevice.rows);
  assert.deepEqual(await train('host'), { ...onDevice, used: 'host' });
});

test('AdaFace goes on from saved statistics bit for bit; a gradient may be straight through', async () => {
  const adaface = { form: 'adaface', m1: 1, m2: 0, m3: 0, m: 0.4, h: 0.333 } as const;
  const options = { margin: adaface, sampleRate: 0.5 };
  const whole = await withSession(options, async (session) => {
    for (let step = 0; step < 3; step++) await session.step(step, 0.1);
    const saved = { backbone: await session.saveBackbone(), rows: await session.saveRows(0, 40) };
    const statistics = await session.normStatistics();
    return { saved, statistics, loss: (await session.step(3, 0.1)).loss, rows: await session.saveRows(0, 40) };
  });
  assert.ok(whole.statistics!.normDeviation < 100 && whole.statistics!.normDeviation > 90);
  const resumed = (statistics: NormStatistics | null, change: Partial<TrainingOptions> = {}) =>
    withSession({ ...options, ...change }, async (session) => {
      await session.loadBackbone(whole.saved.backbone);
      await session.loadRows(whole.saved.rows);
      // As a checkpoint has them.
      if (statistics) await session.useNormStatistics(JSON.parse(JSON.stringify(statistics)));
      return { loss: (await session.step(3, 0.1)).loss, rows: await session.saveRows(0, 40) };
    });
  assert.deepEqual(await resumed(whole.statistics!), { loss: whole.loss, rows: whole.rows });
  assert.notEqual((await resumed(null)).loss, whole.loss);

  const straight = await resumed(whole.statistics!, { gradient: 'straightThrough' });
  assert.equal(straight.loss, whole.loss);
  assert.notDeepEqual(straight.rows, whole.rows);

  await withSession({}, async (session) => assert.equal(await session.normStatistics(), undefined));
});

test('the learning rate of class centres is a factor of that of the backbone', async () => {
  const after = (options: { rowsRateFactor?: number }, learningRate: number) =>
    withSession(options, async (session) => {
      await session.step(0, learningRate);
      return (await session.saveRows(0, 40)).tensors.weight;
    });
  assert.deepEqual(await after({ rowsRateFactor: 0.5 }, 0.1), await after({}, 0.05));
});

test('class centres in bfloat16 train, and a resumed run is the uninterrupted one', async () => {
  const options = { rowsPrecision: 'bf16', sampleRate: 0.5 } as const;
  const whole = await withSession(options, async (session) => {
    assert.deepEqual(
      session.rowTensors.map(({ dtype }) => dtype),
      ['bfloat16', 'bfloat16'],
    );
    const start = await session.saveRows(0, 40);
    assert.equal(start.tensors.weight!.bytes.length, 40 * DIM * 2);
    const losses = [];
    for (let step = 0; step < 3; step++) losses.push((await session.step(step, 0.1)).loss);
    const state = { backbone: await session.saveBackbone(), rows: await session.saveRows(0, 40) };
    assert.notDeepEqual(state.rows, start);
    losses.push((await session.step(3, 0.1)).loss);
    return { losses, state, rows: await session.saveRows(0, 40) };
  });
  const resumed = await withSession(options, async (session) => {
    await session.loadBackbone(whole.state.backbone);
    await session.loadRows(whole.state.rows);
    return { loss: (await session.step(3, 0.1)).loss, rows: await session.saveRows(0, 40) };
  });
  assert.deepEqual(resumed, { loss: whole.losses[3], rows: whole.rows });

  // Centres in float32 begin with the same values, and lose what bfloat16 does not have.
  const wide = await withSession({ sampleRate: 0.5 }, async (session) => {
    const losses = [];
    for (let step = 0; step < 4; step++) losses.push((await session.step(step, 0.1)).loss);
    return losses;
  });
  for (const [step, loss] of wide.entries()) assert.ok(Math.abs(loss - whole.losses[step]!) < 0.02 * loss);
});

suite('class centres go on from a checkpoint', () => {
  const trained = (options: Partial<TrainingOptions>) =>
    withSession({ sampleRate: 0.5, ...options }, async (session) => {
      for (let step = 0; step < 3; step++) await session.step(step, 0.1);
      const state = { backbone: await session.saveBackbone(), rows: await session.saveRows(0, 40) };
      const { loss } = await session.step(3, 0.1);
      return { state, loss, rows: await session.saveRows(0, 40) };
    });
  const resumed = (
    options: Partial<TrainingOptions>,
    { backbone, rows }: Awaited<ReturnType<typeof trained>>['state'],
  ) =>
    withSession({ sampleRate: 0.5, ...options }, async (session) => {
      await session.loadBackbone(backbone);
      await session.loadRows(rows);
      const loaded = await session.saveRows(0, 40);
      const { loss } = await session.step(3, 0.1);
      return { loaded, loss, rows: await session.saveRows(0, 40) };
    });
  const cases = [
    { rowsOptimizer: 'adamw', rowsPrecision: 'fp32' },
    { rowsOptimizer: 'adamw', rowsPrecision: 'bf16' },
    { rowsOptimizer: 'adagrad', rowsPrecision: 'fp32' },
    { rowsOptimizer: 'adagrad', rowsPrecision: 'bf16' },
    { rowsOptimizer: 'sgd', rowsPrecision: 'fp32', rowUpdate: 'dense' },
    { rowsOptimizer: 'adagrad', rowsPrecision: 'bf16', rowUpdate: 'dense' },
    { rowsOptimizer: 'adamw', rowsPrecision: 'bf16', rowsPlacement: 'host' },
  ] as const;
  for (const options of cases)
    test(`${Object.values(options).join(', ')}: as the uninterrupted run, bit for bit`, async () => {
      const whole = await trained(options);
      const { loaded, ...rest } = await resumed(options, whole.state);
      assert.deepEqual(loaded, whole.state.rows);
      assert.deepEqual(rest, { loss: whole.loss, rows: whole.rows });
    });

  for (const [first, then] of [
    [{ rowUpdate: 'lazy' }, { rowUpdate: 'dense' }],
    [{ rowUpdate: 'dense' }, { rowUpdate: 'lazy' }],
    [{ rowsPlacement: 'device' }, { rowsPlacement: 'host' }],
    [{ rowsPlacement: 'host' }, { rowsPlacement: 'device' }],
  ] as const)
    test(`${Object.values(first)}, then ${Object.values(then)}: the same numbers, then as the new one`, async () => {
      const { state } = await trained(first);
      const { loaded, rows } = await resumed(then, state);
      assert.deepEqual(loaded, state.rows);
      // A placement computes the same, and another update what it does from here on.
      const own = await resumed(first, state);
      if ('rowsPlacement' in then) assert.deepEqual(rows, own.rows);
      else assert.notDeepEqual(rows, own.rows);
    });

  test('another type converts: to float32 exactly, to bfloat16 by rounding to the nearest', async () => {
    for (const rowsOptimizer of ['sgd', 'adamw', 'adagrad'] as const) {
      const [wide, narrow] = [
        await trained({ rowsOptimizer }),
        await trained({ rowsOptimizer, rowsPrecision: 'bf16' }),
      ];
      const widened = await resumed({ rowsOptimizer }, narrow.state);
      const narrowed = await resumed({ rowsOptimizer, rowsPrecision: 'bf16' }, wide.state);
      for (const [name, { dtype, bytes }] of Object.entries(narrow.state.rows.tensors)) {
        if (dtype !== 'bfloat16') continue;
        assert.deepEqual(floatsOf(widened.loaded.tensors[name]!), floatsOf({ dtype, bytes }), name);
        const [exact, rounded] = [wide.state.rows, narrowed.loaded].map((from) => floatsOf(from.tensors[name]!));
        // Half of the last of 8 bits.
        exact!.forEach((value, i) => {
          assert.ok(Math.abs(rounded![i]! - value) <= Math.abs(value) / 256, `${name}: ${value} to ${rounded![i]}`);
        });
      }
      assert.ok(Number.isFinite(widened.loss) && Number.isFinite(narrowed.loss));
    }
  });
});

/** Numbers of a tensor of rows. */
function floatsOf({ dtype, bytes }: Rows['tensors'][string]): number[] {
  const { buffer } = Uint8Array.from(bytes);
  if (dtype === 'float32') return [...new Float32Array(buffer)];
  return [...new Float32Array(Uint32Array.from(new Uint16Array(buffer), (half) => half << 16).buffer)];
}

test('a copy keeps the state of its moment while steps change the session', async () => {
  await withSession({ graph: tinyNet({ batchNorm: true }) }, async (session) => {
    await session.step(0, 0.1);
    const [backbone, rows] = [await session.saveBackbone(), await session.saveRows(0, 40)];
    const copy = (await session.copyState({ backbone: true }))!;
    await session.step(1, 0.1);
    // The next step may run while the copy is read.
    const [, copiedBackbone, first, second] = await Promise.all([
      session.step(2, 0.1),
      copy.saveBackbone(),
      copy.saveRows(0, 13),
      copy.saveRows(13, 27),
    ]);
    assert.deepEqual(copiedBackbone, backbone);
    for (const name of ['weight', 'momentum'])
      assert.deepEqual(
        Buffer.concat([first.tensors[name]!.bytes, second.tensors[name]!.bytes]),
        Buffer.from(rows.tensors[name]!.bytes),
      );
    assert.notDeepEqual(await session.saveBackbone(), backbone);
    assert.notDeepEqual(await session.saveRows(0, 40), rows);
    await copy.close();
    const withoutBackbone = (await session.copyState({ backbone: false }))!;
    assert.deepEqual(await withoutBackbone.saveBackbone(), { tensors: {}, momentum: {} });
    // The memory of the first copy is used again, and has the numbers of this moment.
    assert.deepEqual(await withoutBackbone.saveRows(0, 40), await session.saveRows(0, 40));
    await withoutBackbone.close();
  });
});

test('device auto is CUDA only if there is a device for every local rank', async () => {
  const { cudaDevices } = capabilities();
  const device = (options: Partial<TrainingOptions>) => withSession(options, async (session) => session.device);
  assert.equal(await device({ device: 'cpu' }), 'cpu');
  assert.equal(await device({ device: 'auto' }), cudaDevices > 0 ? 'cuda' : 'cpu');
  assert.equal(
    await device({ device: 'auto', comm: { ...trainingOptions().comm, localSize: cudaDevices + 1 } }),
    'cpu',
  );
});

suite('refuses', () => {
  const refusal = async (body: Promise<unknown>, code: string, message: RegExp) =>
    assert.rejects(
      body,
      (error: unknown) => error instanceof FacetrainError && error.code === code && message.test(error.message),
    );

  test('a state of another model', async () => {
    await withSession({}, async (session) => {
      const { tensors, momentum } = await session.saveBackbone();
      const { 'fc.weight': fc, ...others } = tensors;
      await refusal(
        session.loadBackbone({ tensors: others, momentum }),
        'InvalidCheckpoint',
        /tensors 'fc.weight': missing/,
      );
      await refusal(
        session.loadBackbone({ tensors: { ...tensors, extra: fc! }, momentum }),
        'InvalidCheckpoint',
        /tensors 'extra': the model has no such tensor/,
      );
      await refusal(
        session.loadBackbone({ tensors, momentum: { ...momentum, 'fc.weight': { dims: [256, 16], data: fc!.data } } }),
        'InvalidCheckpoint',
        /shape \[256, 16\]; \[16, 256\]/,
      );
      assert.deepEqual(await session.saveBackbone(), { tensors, momentum });
      await refusal(session.saveRows(39, 2), 'InvalidArgument', /39 to 41; 0 to 40/);
      await refusal(
        session.loadRows({
          firstRow: 0,
          rows: 2,
          tensors: {
            weight: { dtype: 'float32', bytes: new Uint8Array(12) },
            momentum: { dtype: 'float32', bytes: new Uint8Array(128) },
          },
        }),
        'InvalidArgument',
        /weight: 3 numbers for 2 rows; 2 x 16/,
      );
      const { tensors: rows } = await session.saveRows(0, 2);
      const { momentum: kept } = rows;
      await refusal(
        session.loadRows({ firstRow: 0, rows: 2, tensors: { momentum: kept! } }),
        'InvalidArgument',
        /weight: missing/,
      );
      await refusal(
        session.loadRows({ firstRow: 0, rows: 2, tensors: { ...rows, sum: kept! } }),
        'InvalidArgument',
        /sum: no tensor of the class centres; weight, momentum/,
      );
    });
  });

  test('a graph, a dataset, a device or a batch size that does not fit', async () => {
    const { data, comm } = trainingOptions();
    const small = tinyNet();
    small.input.height = 96;
    await refusal(
      TrainingSession.open(trainingOptions({ graph: small })),
      'InvalidDataset',
      /pictures of 112 x 112 .* 96 x 112/,
    );
    const missing = capabilities().nccl ? /rank 99 of this machine sees \d+ CUDA devices/ : /this build has no CUDA/;
    await refusal(
      TrainingSession.open(trainingOptions({ device: 'cuda', comm: { ...comm, localRank: 99 } })),
      'InvalidConfig',
      missing,
    );
    await refusal(
      TrainingSession.open(trainingOptions({ data: { ...data, directory: `${exampleFaces}/nowhere` } })),
      'InvalidDataset',
      /nowhere/,
    );
    await refusal(
      TrainingSession.open(trainingOptions({ data: { ...data, globalBatchSize: 2 }, comm: { ...comm, size: 3 } })),
      'InvalidConfig',
      /globalBatchSize: 2; a picture for each of the 3 ranks/,
    );
    await refusal(
      TrainingSession.open(trainingOptions({ microBatchSize: 12, comm: { ...comm, size: 2 } })),
      'InvalidConfig',
      /microBatchSize: 12; a divisor of the 32 pictures of a step/,
    );
    await refusal(
      TrainingSession.open(trainingOptions({ microBatchSize: 16, comm: { ...comm, size: 3 } })),
      'InvalidConfig',
      /microBatchSize: 16; .* with a micro-batch for each of the 3 ranks/,
    );
    await refusal(
      TrainingSession.open(trainingOptions({ microBatchSize: 16, syncBatchNorm: true })),
      'InvalidConfig',
      /16, with syncBatchNorm; one micro-batch on each rank/,
    );
    await refusal(
      TrainingSession.open(trainingOptions({ data: { ...data, globalBatchSize: 801 } })),
      'InvalidDataset',
      /800 pictures/,
    );
  });

  test('labels outside the classes', async () => {
    await withSession({ numClasses: 30 }, async (session) => {
      await refusal(
        (async () => {
          for (let step = 0; step < 25; step++) await session.step(step, 0);
        })(),
        'InvalidDataset',
        /30/,
      );
    });
  });
});

suite('ranks in processes', () => {
  interface Trained {
    steps: { loss: number; gradientNorm: number; votes: object }[];
    communicated: boolean;
    tensors: Record<string, string>;
    momentum: Record<string, string>;
    rows: { firstRow: number; rows: number; weight: string; momentum: string };
    gathered: number[][];
    nothing: number[];
  }

  async function ranks<T>(scenario: string, size: number): Promise<T[]> {
    const [port] = await freePorts(1);
    const ended = await Promise.all(
      Array.from({ length: size }, (_, rank) => startRank(scenario, { rank, size, port }).ended),
    );
    return ended.map(({ code, output, errors }) => {
      assert.equal(code, 0, errors);
      return JSON.parse(output) as T;
    });
  }
  const numbers = (digest: string) => {
    const bytes = Buffer.from(digest, 'base64');
    return [...new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)];
  };

  test('two train as one does with the same global batch, and hold the same backbone', async () => {
    const [[alone], [first, second]] = (await Promise.all([
      ranks<Trained>('train', 1),
      ranks<Trained>('train', 2),
    ])) as [[Trained], [Trained, Trained]];
    assert.deepEqual(first.tensors, second.tensors);
    assert.deepEqual(first.momentum, second.momentum);
    assert.deepEqual(first.steps, second.steps);
    assert.deepEqual(
      [alone, first, second].map(({ communicated }) => communicated),
      [false, true, true],
    );
    for (const part of ['tensors', 'momentum'] as const) {
      for (const name of Object.keys(alone[part]))
        assertNear(numbers(first[part][name]!), numbers(alone[part][name]!), 1e-4);
    }
    for (const [i, { loss, gradientNorm }] of alone.steps.entries())
      assertNear([first.steps[i]!.loss, first.steps[i]!.gradientNorm], [loss, gradientNorm], 1e-5);
    assert.deepEqual([first.rows.firstRow, first.rows.rows, second.rows.firstRow, second.rows.rows], [0, 20, 20, 20]);
    for (const part of ['weight', 'momentum'] as const)
      assertNear([...numbers(first.rows[part]), ...numbers(second.rows[part])], numbers(alone.rows[part]), 1e-4);

    // Rank 1 voted that it writes at step 0 and to stop at step 1, rank 0 for a checkpoint at step 2.
    assert.deepEqual(
      first.steps.map(({ votes }) => votes),
      [
        { stop: false, checkpoint: false, writing: true },
        { stop: true, checkpoint: false, writing: false },
        { stop: false, checkpoint: true, writing: false },
      ],
    );
    for (const rank of [first, second]) {
      assert.deepEqual(rank.gathered, [[0], [10, 11]]);
      assert.deepEqual(rank.nothing, [0, 0]);
    }
  });

  test('two have the same running statistics, and a second run gives the same numbers', async () => {
    process.env.BATCH_NORM = '1';
    try {
      const [one, again] = [await ranks<Trained>('train', 2), await ranks<Trained>('train', 2)];
      assert.ok('norm1.mean' in one[0]!.tensors);
      assert.deepEqual(one[0]!.tensors, one[1]!.tensors);
      assert.deepEqual(one, again);
    } finally {
      delete process.env.BATCH_NORM;
    }
  });

  test('micro-batches, and batch norms over both ranks, train as another number of ranks does', async () => {
    const run = async (size: number, environment: Record<string, string>) => {
      Object.assign(process.env, { BATCH_NORM: '1', ...environment });
      try {
        return (await ranks<Trained>('train', size))[0]!;
      } finally {
        for (const name of ['BATCH_NORM', ...Object.keys(environment)]) delete process.env[name];
      }
    };
    const pairs = [
      [await run(1, { MICRO_BATCH_SIZE: '16' }), await run(2, {})],
      [await run(2, { SYNC_BATCH_NORM: '1' }), await run(1, {})],
      // Parts of different lengths: 11, 11 and 10 pictures, then two micro-batches, one and one.
      [await run(3, { SYNC_BATCH_NORM: '1' }), await run(4, { SYNC_BATCH_NORM: '1' })],
      [await run(3, { MICRO_BATCH_SIZE: '8' }), await run(4, {})],
    ] as const;
    for (const [one, other] of pairs) {
      for (const name of Object.keys(one.tensors))
        assertNear(numbers(one.tensors[name]!), numbers(other.tensors[name]!), 1e-4);
      for (const [i, { loss }] of one.steps.entries()) assertNear([other.steps[i]!.loss], [loss], 1e-5);
    }
    // A batch norm over 16 pictures is not one over 32.
    assert.ok(Math.abs(pairs[0][0].steps[2]!.loss - pairs[1][0].steps[2]!.loss) > 1e-3);
  });

  test('NaN or infinity ends the run on every rank at the same step and leaves the weights unchanged', async () => {
    const [first, second] = await ranks<{ code: string; message: string; step: number; unmoved: boolean }>(
      'diverge',
      2,
    );
    assert.deepEqual(first, second);
    assert.equal(first!.code, 'NotANumber');
    assert.equal(first!.unmoved, true);
    assert.ok(first!.step > 0);
    assert.match(first!.message, new RegExp(`^step ${first!.step}: the loss is `));
  });

  test('a killed peer is reported as PeerLost', async () => {
    const [port] = await freePorts(1);
    const [survivor, victim] = [
      startRank('report', { rank: 0, size: 2, port }),
      startRank('wait', { rank: 1, size: 2, port }),
    ];
    await Promise.all([survivor.ready, victim.ready]);
    victim.process.kill('SIGKILL');
    const { code, output, errors } = await survivor.ended;
    assert.equal(code, 11, errors);
    const error = JSON.parse(output) as { code: string; message: string };
    assert.equal(error.code, 'PeerLost');
    assert.match(error.message, /^rank 0 of 2: lost its peers: /);
  });

  test('a rendezvous without the other rank fails in time and names the address', async () => {
    const [port] = await freePorts(1);
    const comm = { ...trainingOptions().comm, size: 2, rank: 1, masterPort: port, rendezvousTimeoutMs: 300 };
    await assert.rejects(TrainingSession.open(trainingOptions({ comm })), (error: unknown) => {
      assert.ok(error instanceof FacetrainError);
      assert.equal(error.code, 'RendezvousTimeout');
      assert.match(error.message, new RegExp(`^MASTER_ADDR:MASTER_PORT 127.0.0.1:${port}: `));
      return true;
    });
  });
});

suite('a process that ends in the middle of a step', () => {
  const ends: Record<string, { code: number | null; signal?: string; kill?: NodeJS.Signals }> = {
    exit: { code: 7 },
    throw: { code: 1 },
    close: { code: 0 },
    wait: { code: null, signal: 'SIGTERM', kill: 'SIGTERM' },
    rendezvous: { code: 9 },
  };
  for (const [scenario, { code, signal = null, kill }] of Object.entries(ends)) {
    test(`${scenario} ends with ${code ?? signal}`, async () => {
      const size = scenario === 'rendezvous' ? 2 : 1;
      const child = startRank(scenario, { size, port: (await freePorts(1))[0] });
      if (kill) {
        await child.ready;
        child.process.kill(kill);
      }
      const ended = await child.ended;
      assert.deepEqual([ended.code, ended.signal], [code, signal], ended.errors);
      if (scenario === 'throw') assert.match(ended.errors, /uncaught on purpose/);
      if (scenario === 'close') assert.equal(ended.output.trim(), 'AbortError');
    });
  }
});

test('memory that does not suffice is InsufficientMemory, without C++ frames', async () => {
  // An input of 2^50 bytes and more: no machine has that.
  const graph = tinyNet();
  graph.input = { ...graph.input, height: 2 ** 23, width: 2 ** 23 };
  await assert.rejects(Model.open(graph, { computeThreads: 1 }), (error) => {
    assert.ok(error instanceof FacetrainError);
    assert.deepEqual([error.code, error.exitCode], ['InsufficientMemory', 2]);
    assert.match(error.message, /no memory for \d+ bytes; \d+ bytes are available; more memory .*microBatchSize/);
    assert.doesNotMatch(error.message, /frame #|Exception raised/);
    return true;
  });
});
