/** The program of one rank in a test: `rank-process.ts SCENARIO RANK SIZE PORT`. */
import { TrainingSession } from '../training.ts';
import { tinyNet, trainingOptions } from './training-fixtures.ts';

const [scenario, ...numbers] = process.argv.slice(2);
const [rank, size, masterPort] = numbers.map(Number) as [number, number, number];
const comm = { ...trainingOptions().comm, rank, size, localRank: rank, localSize: size, masterPort };
const digest = (values: Float32Array) =>
  Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString('base64');

const open = (options = {}) => TrainingSession.open(trainingOptions({ comm, ...options }));

/** Trains until an error; resolves after the first step, with a promise of that error. */
async function keepTraining(session: TrainingSession): Promise<{ failed: Promise<unknown> }> {
  await session.step(0, 0.01);
  const endless = async () => {
    for (let step = 1; ; step++) await session.step(step, 0.01);
  };
  const failed = endless().catch((error: unknown) => error);
  process.send?.('training');
  return { failed };
}

const scenarios: Record<string, () => Promise<void>> = {
  /** Trains three steps; prints losses, votes, and the rank's final state. */
  async train() {
    const { BATCH_NORM, MICRO_BATCH_SIZE, SYNC_BATCH_NORM } = process.env;
    const session = await open({
      graph: tinyNet({ batchNorm: BATCH_NORM === '1' }),
      sampleRate: 0.3,
      microBatchSize: MICRO_BATCH_SIZE ? Number(MICRO_BATCH_SIZE) : null,
      syncBatchNorm: SYNC_BATCH_NORM === '1',
    });
    const steps = [];
    let communicationSeconds = 0;
    for (let step = 0; step < 3; step++) {
      const votes = {
        stop: step === 1 && rank === size - 1,
        checkpoint: step === 2 && rank === 0,
        writing: step === 0 && rank === size - 1,
      };
      const { stageSeconds, ...result } = await session.step(step, 0.1, votes);
      communicationSeconds += stageSeconds?.communication ?? 0;
      steps.push(result);
    }
    const { tensors, momentum } = await session.saveBackbone();
    const rows = await session.saveRows(session.rowRange.firstRow, session.rowRange.rows);
    const gathered = await session.allGather(Float32Array.from({ length: rank + 1 }, (_, i) => 10 * rank + i));
    const nothing = await session.allGather(new Float32Array(0));
    await session.barrier();
    await session.close();
    const row = (name: string) => Buffer.from(rows.tensors[name]!.bytes).toString('base64');
    const backbone = (state: typeof tensors) =>
      Object.fromEntries(Object.entries(state).map(([name, { data }]) => [name, digest(data)]));
    console.log(
      JSON.stringify({
        steps,
        communicated: communicationSeconds > 0,
        tensors: backbone(tensors),
        momentum: backbone(momentum),
        rows: { firstRow: rows.firstRow, rows: rows.rows, weight: row('weight'), momentum: row('momentum') },
        gathered: gathered.map((values) => [...values]),
        nothing: nothing.map((values) => values.length),
      }),
    );
  },

  /** Trains with a learning rate that makes the loss NaN; prints the step, and whether its weights stayed unchanged. */
  async diverge() {
    const session = await open({ gradientClipNorm: null });
    for (let step = 0; ; step++) {
      const before = await session.saveBackbone();
      try {
        await session.step(step, 1e30);
      } catch (error) {
        const after = await session.saveBackbone();
        const unmoved = Object.entries(before.tensors).every(
          ([name, { data }]) => digest(data) === digest(after.tensors[name]!.data),
        );
        console.log(
          JSON.stringify({ code: (error as { code: string }).code, message: (error as Error).message, step, unmoved }),
        );
        break;
      }
    }
    await session.close();
  },

  /** Trains until an error, and prints it. */
  async report() {
    const session = await open();
    const error = (await (await keepTraining(session)).failed) as { code: string; message: string };
    console.log(JSON.stringify({ code: error.code, message: error.message }));
    process.exit(11);
  },

  // Ways in which a process can end in the middle of a step.
  async exit() {
    await keepTraining(await open());
    process.exit(7);
  },
  async throw() {
    await keepTraining(await open());
    throw new Error('uncaught on purpose');
  },
  async wait() {
    await keepTraining(await open());
  },
  async close() {
    const session = await open();
    const { failed } = await keepTraining(session);
    await session.close();
    console.log(((await failed) as Error).name);
  },
  /** Exits while it waits for a rank that does not join. */
  async rendezvous() {
    const opening = open();
    opening.catch(() => undefined);
    process.exit(9);
  },
};

await scenarios[scenario!]!();
