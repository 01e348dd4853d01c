/** Checkpoints of a gang whose sessions hold plain arrays, written and read by any numbers of ranks. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import {
  CHECKPOINT_EVALUATIONS,
  CheckpointManifest,
  FacetrainError,
  type LossScale,
  type NormStatistics,
  OUTPUT,
  type Precision,
  type RowFile,
} from '@facetrain/api';
import type { BackboneState, Rows, RowTensor, StateCopy, TrainingSessionContract } from '@facetrain/native';
import { digestFile } from '../storage/digest.ts';
import { Fence } from '../storage/fence.ts';
import { SimulatedProcess } from '../testing/file-operations.ts';
import { compareCheckpoints, openAt } from './compare.ts';
import {
  checkpointDirectory,
  completeSteps,
  DamagedCheckpoint,
  findNewest,
  manifestPath,
  openCheckpoint,
  removeUnfinished,
} from './directory.ts';
import {
  addition,
  editedFolder,
  editHead,
  type HeadEdit,
  merger,
  type OpenHead,
  openHeads,
  removal,
  rowsOf,
  toStored,
} from './edit-head.ts';
import { evaluationOf, meanAccuracy, noteEvaluation, readEvaluations } from './evaluations.ts';
import { type JobFacts, loadCheckpoint } from './load.ts';
import { readIdentities } from './retired.ts';
import { toFloats } from './rows.ts';
import { PendingCheckpoint, type SaveOptions, saveCheckpoint, splitRows } from './save.ts';
import { searchBytes } from './search-bytes.ts';
import { FolderTarget, prune } from './target.ts';

const DIM = 4;
/** So that a rank has several blocks, and two ranks have parts of one. */
const BLOCK_ROWS = 4;
// In memory, where it can be: the last tests flush thousands of times.
const top = await mkdtemp(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'checkpoint-'));
after(() => rm(top, { recursive: true }));
let folders = 0;
const newFence = () => claim(join(top, String(folders++)));

function claim(root: string, attempt = 0): Promise<Fence> {
  return Fence.claim(root, { name: 'j', uid: 'u', attempt, start: randomUUID() });
}

/** The state of a session, without training. */
class FakeSession {
  readonly dim = DIM;
  readonly stepsPerEpoch = 10;
  readonly rowRange: { firstRow: number; rows: number };
  readonly rowTensors: RowTensor[] = ['weight', 'momentum'].map((name) => ({ name, dtype: 'float32', columns: DIM }));
  readonly rowsOptimizer = 'sgd';
  readonly weight: Float32Array;
  readonly momentum: Float32Array;
  backbone: BackboneState;
  device: 'cpu' | 'cuda' = 'cpu';
  precision: Precision = 'fp32';
  scale: LossScale | undefined;
  statistics: NormStatistics | undefined;
  #gang: Gang;

  constructor(gang: Gang, rank: number, numClasses: number, size: number) {
    const rows = Math.floor(numClasses / size) + (rank < numClasses % size ? 1 : 0);
    this.rowRange = { firstRow: rank * Math.floor(numClasses / size) + Math.min(rank, numClasses % size), rows };
    this.weight = new Float32Array(rows * DIM);
    this.momentum = new Float32Array(rows * DIM);
    this.backbone = {
      tensors: { conv: { dims: [2], data: new Float32Array(2) }, mean: { dims: [], data: new Float32Array(1) } },
      momentum: { conv: { dims: [2], data: new Float32Array(2) } },
    };
    this.#gang = gang;
  }

  /** As native/train/device.cc. */
  async usePrecision(precision: Precision, lossScale?: LossScale): Promise<void> {
    if (this.device === 'cpu' && precision !== 'fp32' && precision !== 'bf16') {
      throw new FacetrainError({
        code: 'InvalidConfig',
        subject: 'trainers.precision',
        found: `${precision}, and the device is a CPU`,
        allowed: 'Auto, FP32 or BF16 on a CPU',
      });
    }
    this.precision = precision;
    this.scale = lossScale;
  }
  async lossScale(): Promise<LossScale | undefined> {
    return this.scale;
  }
  async normStatistics(): Promise<NormStatistics | undefined> {
    return this.statistics;
  }
  async useNormStatistics(statistics: NormStatistics): Promise<void> {
    this.statistics = statistics;
  }
  async saveBackbone(): Promise<BackboneState> {
    return structuredClone(this.backbone);
  }
  async loadBackbone(state: BackboneState): Promise<void> {
    this.backbone = state;
  }
  async saveRows(firstRow: number, rows: number): Promise<Rows> {
    const range = [
      (firstRow - this.rowRange.firstRow) * DIM,
      (firstRow - this.rowRange.firstRow + rows) * DIM,
    ] as const;
    const part = (values: Float32Array) => ({
      dtype: 'float32' as const,
      bytes: new Uint8Array(values.slice(...range).buffer),
    });
    return { firstRow, rows, tensors: { weight: part(this.weight), momentum: part(this.momentum) } };
  }
  async loadRows({ firstRow, tensors }: Rows): Promise<void> {
    for (const name of Object.keys(tensors) as ('weight' | 'momentum')[]) {
      assert.equal(tensors[name]!.dtype, 'float32');
      const { buffer } = Uint8Array.from(tensors[name]!.bytes);
      this[name].set(new Float32Array(buffer), (firstRow - this.rowRange.firstRow) * DIM);
    }
  }
  async copyState({ backbone }: { backbone: boolean }): Promise<StateCopy> {
    const copy = Object.assign(Object.create(FakeSession.prototype) as FakeSession, {
      rowRange: this.rowRange,
      weight: this.weight.slice(),
      momentum: this.momentum.slice(),
      backbone: backbone ? structuredClone(this.backbone) : undefined,
    });
    return Object.assign(copy, { close: async () => {} });
  }
  allGather(values: Float32Array): Promise<Float32Array[]> {
    return this.#gang.gather(values, this);
  }
  async barrier(): Promise<void> {
    await this.allGather(new Float32Array(0));
  }
}

const JOB: JobFacts = { name: 'j', seed: 1, precision: 'auto', numClasses: 11, totalSteps: 100 };

class Gang {
  readonly sessions: (FakeSession & TrainingSessionContract)[];
  #parts = new Map<FakeSession, Float32Array>();
  #gathered = Promise.withResolvers<Float32Array[]>();

  constructor(size: number, numClasses = 11) {
    this.sessions = Array.from(
      { length: size },
      (_, rank) => new FakeSession(this, rank, numClasses, size) as FakeSession & TrainingSessionContract,
    );
  }

  gather(values: Float32Array, session: FakeSession): Promise<Float32Array[]> {
    assert(!this.#parts.has(session), 'a rank called a second collective before the first was over');
    const { promise } = this.#gathered;
    this.#parts.set(session, values);
    if (this.#parts.size === this.sessions.length) {
      this.#gathered.resolve(this.sessions.map((member) => this.#parts.get(member)!));
      this.#gathered = Promise.withResolvers();
      this.#parts.clear();
    }
    return promise;
  }

  /** Waits until a rank waits in a collective: it has finished its writes then. */
  async arrived(session: FakeSession): Promise<void> {
    const deadline = Date.now() + 120_000;
    while (!this.#parts.has(session)) {
      assert(Date.now() < deadline, 'the rank never came to the collective');
      await setImmediate();
    }
  }

  /** Fills in values that depend only on the global row. */
  fill(): this {
    for (const session of this.sessions) {
      const { firstRow, rows } = session.rowRange;
      for (let i = 0; i < rows * DIM; i++) {
        session.weight[i] = firstRow * DIM + i + 0.25;
        session.momentum[i] = -(firstRow * DIM + i);
      }
      session.backbone.tensors.conv!.data.set([1, 2]);
      session.backbone.tensors.mean!.data.set([3]);
      session.backbone.momentum.conv!.data.set([4, 5]);
    }
    return this;
  }

  options(fence: Fence, step: number, rank: number): SaveOptions {
    return {
      target: new FolderTarget(fence),
      retention: { keep: 100, keepBest: 0 },
      step,
      rank,
      worldSize: this.sessions.length,
      job: { name: 'j', uid: 'u' },
      seed: 1,
      numClasses: 11,
      history: { lossFirst: 9, trainSeconds: 2, recentLosses: [9, 8] },
      ...(this.sessions[rank]!.scale && { lossScale: this.sessions[rank]!.scale }),
      normStatistics: this.sessions[rank]!.statistics,
      time: new Date(0),
      blockRows: BLOCK_ROWS,
    };
  }

  save(fence: Fence, step: number, keep = 100, job = 'j', keepBest = 0): Promise<unknown[]> {
    const retention = { keep, keepBest };
    return Promise.all(
      this.sessions.map((session, rank) =>
        saveCheckpoint(session, { ...this.options(fence, step, rank), retention, job: { name: job, uid: 'u' } }),
      ),
    );
  }

  async load(root: string, expected = JOB): Promise<void> {
    const checkpoint = await newest(root);
    assert(checkpoint);
    await Promise.all(this.sessions.map((session) => loadCheckpoint(session, checkpoint, expected)));
  }
}

/** The newest checkpoint of a folder without damaged ones. */
const newest = (root: string) => findNewest(root, (damage) => assert.fail(damage));

/** What is in the folder, without the fences. */
const listed = async (root: string) => (await readdir(root)).filter((name) => name !== OUTPUT.fences).sort();

async function refusal(promise: Promise<unknown>): Promise<FacetrainError> {
  const error = await promise.then(
    () => assert.fail('not refused'),
    (error: unknown) => error,
  );
  assert(error instanceof FacetrainError && error.code === 'InvalidCheckpoint', String(error));
  return error;
}

test('a checkpoint written by any number of ranks loads on any other', async () => {
  const digestOf: Record<number, string> = {};
  for (const writers of [1, 2, 4] as const) {
    const fence = await newFence();
    const root = fence.folder;
    await new Gang(writers).fill().save(fence, 7);
    const manifest = CheckpointManifest.parse((await newest(root))!.manifest);
    assert.deepEqual(
      manifest.rows.files.map(({ blocks }) => blocks.map(({ firstRow, rows }) => [firstRow, rows])),
      {
        1: [
          [
            [0, 4],
            [4, 4],
            [8, 3],
          ],
        ],
        2: [
          [
            [0, 4],
            [4, 2],
          ],
          [
            [6, 2],
            [8, 3],
          ],
        ],
        4: [
          [[0, 3]],
          [
            [3, 1],
            [4, 2],
          ],
          [
            [6, 2],
            [8, 1],
          ],
          [[9, 2]],
        ],
      }[writers],
    );
    // Blocks that no border of ranks cuts have the same bytes for any number of ranks.
    const whole = manifest.rows.files.flatMap(({ blocks }) => blocks.filter(({ rows }) => rows === BLOCK_ROWS));
    for (const { firstRow, sha256 } of whole) assert.equal(sha256, (digestOf[firstRow] ??= sha256));
    assert.deepEqual(manifest.history, { lossFirst: 9, trainSeconds: 2, recentLosses: [9, 8] });
    for (const readers of [1, 2, 3, 11]) {
      const gang = new Gang(readers);
      await gang.load(root);
      const expected = new Gang(readers).fill();
      for (const [rank, session] of gang.sessions.entries()) {
        const { weight, momentum, backbone } = expected.sessions[rank]!;
        assert.deepEqual([session.weight, session.momentum, session.backbone], [weight, momentum, backbone]);
      }
    }
  }
});

test('classes that the job has added keep the rows that the session drew for them', async () => {
  const fence = await newFence();
  await new Gang(2).fill().save(fence, 7);
  for (const readers of [1, 2, 3]) {
    const gang = new Gang(readers, 17);
    for (const session of gang.sessions) session.weight.fill(-7);
    // The new identities have pictures, too, so that an epoch has more steps.
    const sessions = gang.sessions as unknown as { stepsPerEpoch: number }[];
    for (const session of sessions) session.stepsPerEpoch = 13;
    await gang.load(fence.folder, { ...JOB, numClasses: 17, mayAddClasses: true });
    const [weight, momentum] = (['weight', 'momentum'] as const).map((name) =>
      gang.sessions.flatMap((session) => [...session[name]]),
    );
    const former = new Gang(1).fill().sessions[0]!;
    assert.deepEqual(weight, [...former.weight, ...Array.from({ length: 6 * DIM }, () => -7)]);
    assert.deepEqual(momentum, [...former.momentum, ...Array.from({ length: 6 * DIM }, () => 0)]);
  }
});

describe('training goes on in the precision of its checkpoint', () => {
  const lossScale = { value: 1024, goodSteps: 7, skippedSteps: 3 };
  const cases: Record<
    string,
    {
      /** Undefined: a checkpoint from before there was a choice. */
      written: Precision | 'fp8' | undefined;
      wanted: JobFacts['precision'];
      device: 'cpu' | 'cuda';
      want: Precision | RegExp;
    }
  > = {
    'Auto takes it': { written: 'bf16', wanted: 'auto', device: 'cpu', want: 'bf16' },
    'the same by name': { written: 'tf32', wanted: 'tf32', device: 'cuda', want: 'tf32' },
    'FP16 with its loss scale': { written: 'fp16', wanted: 'auto', device: 'cuda', want: 'fp16' },
    another: {
      written: 'bf16',
      wanted: 'fp32',
      device: 'cpu',
      want: /manifest.json: precision: BF16; FP32, as trainers.precision of this job says; Auto continues in/,
    },
    'one that the device does not have': {
      written: 'fp16',
      wanted: 'auto',
      device: 'cpu',
      want: /manifest.json: precision: fp16, and the device is a CPU; Auto, FP32 or BF16 on a CPU/,
    },
    'one of a later version': {
      written: 'fp8',
      wanted: 'auto',
      device: 'cuda',
      want: /precision: "fp8"; one that this/,
    },
    'of before, on a CPU': { written: undefined, wanted: 'auto', device: 'cpu', want: 'fp32' },
    'of before, on a GPU': { written: undefined, wanted: 'auto', device: 'cuda', want: 'tf32' },
    'of before, in FP32 on a GPU': { written: undefined, wanted: 'fp32', device: 'cuda', want: 'fp32' },
    'of before, in BF16': { written: undefined, wanted: 'bf16', device: 'cuda', want: /precision: TF32; BF16/ },
  };
  for (const [name, { written, wanted, device, want }] of Object.entries(cases)) {
    test(name, async () => {
      const fence = await newFence();
      const writer = new Gang(1).fill();
      Object.assign(writer.sessions[0]!, { precision: written });
      if (written === 'fp16') writer.sessions[0]!.scale = lossScale;
      await writer.save(fence, 1);
      const reader = new Gang(1);
      const [session] = reader.sessions;
      Object.assign(session!, { device });
      const loading = reader.load(fence.folder, { ...JOB, precision: wanted });
      if (want instanceof RegExp) return assert.match((await refusal(loading)).message, want);
      await loading;
      assert.equal(session!.precision, want);
      assert.deepEqual(await session!.lossScale(), written === 'fp16' ? lossScale : undefined);
    });
  }
});

describe('the running values of AdaFace are saved and restored bit for bit', () => {
  const saved = { normMean: 20.3 + 1e-14, normDeviation: 1 / 3 };
  const start = { normMean: 20, normDeviation: 100 };
  const cases: Record<
    string,
    { written?: object; before?: NormStatistics; want: NormStatistics | undefined | RegExp }
  > = {
    'of AdaFace': { written: saved, before: start, want: saved },
    'another margin goes on with AdaFace': { before: start, want: start },
    'AdaFace goes on with another margin': { written: saved, want: undefined },
    'of another form': {
      written: { normMean: -1, normDeviation: 2 },
      before: start,
      want: /manifest.json: margin: {"normMean":-1,"normDeviation":2}; normMean above 0/,
    },
  };
  for (const [name, { written, before, want }] of Object.entries(cases)) {
    test(name, async () => {
      const fence = await newFence();
      const writer = new Gang(1).fill();
      Object.assign(writer.sessions[0]!, { statistics: written });
      await writer.save(fence, 1);
      const reader = new Gang(2);
      for (const session of reader.sessions) session.statistics = before;
      const loading = reader.load(fence.folder);
      if (want instanceof RegExp) return assert.match((await refusal(loading)).message, want);
      await loading;
      for (const session of reader.sessions) assert.deepEqual(session.statistics, want);
    });
  }
});

test('a rank reads only the files that hold its rows', async () => {
  const fence = await newFence();
  await new Gang(11).fill().save(fence, 1);
  const checkpoint = await openCheckpoint(fence.folder, 1);
  await rm(join(checkpoint.directory, 'rows-0000000010.safetensors'));
  const [first, last] = new Gang(2).sessions;
  await loadCheckpoint(first!, checkpoint, JOB);
  assert.match(
    (await refusal(loadCheckpoint(last!, checkpoint, JOB))).message,
    /rows-0000000010.safetensors: no such file/,
  );
});

test('a checkpoint that does not fit or was changed is refused, naming the file and the difference', async () => {
  const fence = await newFence();
  await new Gang(2).fill().save(fence, 30);
  const checkpoint = await openCheckpoint(fence.folder, 30);
  const { directory } = checkpoint;
  const load = (change: Partial<JobFacts> = {}, gang = new Gang(1)) =>
    loadCheckpoint(gang.sessions[0]!, checkpoint, { ...JOB, ...change });
  await load({ name: null });
  assert.match(
    (await refusal(load({ name: 'k' }))).message,
    /manifest.json: job.name: "j"; "k", the name of this job; .* checkpoint.uri to this folder to continue/,
  );
  assert.match((await refusal(load({ seed: 2 }))).message, /manifest.json: seed: 1; 2, as in this job/);
  assert.match(
    (await refusal(load({ numClasses: 12 }))).message,
    /numClasses: 11; 12, as in this job.*facetrain head add/,
  );
  assert.match(
    (await refusal(load({ numClasses: 10, mayAddClasses: true }))).message,
    /numClasses: 11; 10 at most, .* never shrinks/,
  );
  assert.match((await refusal(load({ totalSteps: 29 }))).message, /step: 30; at most 29/);
  const other = (change: (state: BackboneState) => void) => {
    const gang = new Gang(1);
    change(gang.sessions[0]!.backbone);
    return gang;
  };
  assert.match(
    (
      await refusal(
        load(
          {},
          other((state) => (state.tensors.conv!.dims = [1, 2])),
        ),
      )
    ).message,
    /conv with the shape \[2\]; \[1,2\], as in this job/,
  );
  assert.match(
    (
      await refusal(
        load(
          {},
          other((state) => delete state.tensors.mean),
        ),
      )
    ).message,
    /mean with the shape \[\]; only tensors of this job/,
  );
  assert.match(
    (
      await refusal(
        load(
          {},
          other((state) => (state.momentum.mean = { dims: [], data: new Float32Array(1) })),
        ),
      )
    ).message,
    /no momentum of "mean"/,
  );

  for (const file of (await readdir(directory)).filter((name) => name.endsWith('.safetensors'))) {
    const path = join(directory, file);
    const good = await readFile(path);
    const bad = Buffer.from(good);
    bad[bad.length - 1]! ^= 1;
    await writeFile(path, bad);
    const flipped = await refusal(load());
    assert.match(flipped.message, new RegExp(`${file}: the digest .*, as the manifest says`));
    assert(flipped instanceof DamagedCheckpoint && flipped.file === file);
    // Of a file of rows, every byte is covered: the header too.
    bad[bad.length - 1]! ^= 1;
    bad[9]! ^= 1;
    await writeFile(path, bad);
    assert.match((await refusal(load())).message, new RegExp(`${file}: the digest`));
    await truncate(path, good.length - 4);
    assert.match((await refusal(load())).message, new RegExp(`${file}: ${good.length - 4} bytes; ${good.length}`));
    await writeFile(path, good);
  }
  await load();
  // What does not fit is no damage.
  assert(!((await refusal(load({ seed: 2 }))) instanceof DamagedCheckpoint));
});

test('a manifest that is none, or without some rows, or with files in other folders is damaged', async () => {
  const fence = await newFence();
  await new Gang(2).fill().save(fence, 5);
  const path = manifestPath(checkpointDirectory(fence.folder, 5));
  const good = JSON.parse(await readFile(path, 'utf8')) as CheckpointManifest;
  const rowsWith = (change: (files: RowFile[]) => RowFile[]) => ({ ...good.rows, files: change(good.rows.files) });
  const moved = (blocks: RowFile['blocks']) => blocks.map((block) => ({ ...block, offset: block.offset + 1 }));
  const write = (change: unknown) =>
    writeFile(path, typeof change === 'string' ? change : JSON.stringify({ ...good, ...(change as object) }));
  for (const [change, message] of [
    ['{', /manifest.json: not JSON/],
    ['', /manifest.json: not JSON/],
    ['null', /manifest.json: /],
    [{ step: undefined }, /manifest.json: step: /],
    [{ step: 6 }, /step: 6; 5, as the folder/],
    [{ rows: rowsWith((files) => files.slice(1)) }, /rows from 6 on; row 0/],
    [{ rows: rowsWith((files) => files.slice(0, 1)) }, /rows: 6 rows; 11/],
    [{ rows: rowsWith((files) => [...files, ...files]) }, /neither gaps nor overlaps/],
    [{ rows: { ...good.rows, blockRows: 5 } }, /rows 4 to 6 in one block; a block ends at each multiple of 5/],
    [
      { rows: rowsWith(([first, ...others]) => [{ ...first!, bytes: 9 }, ...others]) },
      /blocks of \d+ bytes; 9, the size/,
    ],
    [
      { rows: rowsWith(([first, ...others]) => [{ ...first!, blocks: moved(first!.blocks) }, ...others]) },
      /has row 0 at byte \d+; byte \d+: without gaps/,
    ],
    [{ rows: { ...good.rows, tensors: good.rows.tensors.slice(1) } }, /weight with no columns; 4, as embeddingDim/],
    [{ rows: { ...good.rows, tensors: [{ ...good.rows.tensors[0]!, dtype: 'float8' }] } }, /rows\.tensors\[0\]\.dtype/],
    [{ backbone: { ...good.backbone, file: '../../secret' } }, /the file name "..\/..\/secret"/],
  ] as const) {
    await write(change);
    const error = await refusal(openCheckpoint(fence.folder, 5));
    assert.match(error.message, message);
    assert(error instanceof DamagedCheckpoint && error.file === 'manifest.json');
  }
  // It is of another version of Facetrain, which can read it, whatever else has changed.
  for (const [change, message] of [
    [{ schemaVersion: 3, rows: [] }, /manifest.json: schemaVersion: 3; 1 or 2: another version of Facetrain/],
    [
      { requires: ['rows-of-8-bits'], rows: [] },
      /manifest.json: requires: "rows-of-8-bits"; nothing that this version/,
    ],
  ] as const) {
    await write(change);
    const error = await refusal(openCheckpoint(fence.folder, 5));
    assert.match(error.message, message);
    assert(!(error instanceof DamagedCheckpoint));
    // Nor is it passed over for an older one.
    await refusal(findNewest(fence.folder, () => assert.fail('set aside')));
  }
  // What a later version adds without a word in `requires` changes nothing.
  await write({ added: 1, backbone: { ...good.backbone, added: 2 }, rows: { ...good.rows, added: 3 } });
  assert.deepEqual((await openCheckpoint(fence.folder, 5)).manifest, good);
});

test('a checkpoint of version 1 loads on any number of ranks, and is checked', async () => {
  const root = (await newFence()).folder;
  await cp(join(import.meta.dirname, '..', 'testing', 'checkpoint-v1'), root, { recursive: true });
  for (const readers of [1, 2, 3, 11]) {
    const gang = new Gang(readers);
    await gang.load(root);
    const expected = new Gang(readers).fill();
    for (const [rank, session] of gang.sessions.entries()) {
      const { weight, momentum, backbone } = expected.sessions[rank]!;
      assert.deepEqual([session.weight, session.momentum, session.backbone], [weight, momentum, backbone]);
    }
  }
  const checkpoint = await openCheckpoint(root, 7);
  const path = join(checkpoint.directory, 'rows-0000000006.safetensors');
  const bytes = await readFile(path);
  bytes[bytes.length - 1]! ^= 1;
  await writeFile(path, bytes);
  const error = await refusal(loadCheckpoint(new Gang(1).sessions[0]!, checkpoint, JOB));
  assert(error instanceof DamagedCheckpoint && error.file === 'rows-0000000006.safetensors');
});

test('blocks begin at the multiples of their size', () => {
  assert.deepEqual(splitRows({ firstRow: 0, rows: 8 }, 4), [
    { firstRow: 0, rows: 4 },
    { firstRow: 4, rows: 4 },
  ]);
  assert.deepEqual(splitRows({ firstRow: 3, rows: 6 }, 4), [
    { firstRow: 3, rows: 1 },
    { firstRow: 4, rows: 4 },
    { firstRow: 8, rows: 1 },
  ]);
  assert.deepEqual(splitRows({ firstRow: 5, rows: 1 }, 4), [{ firstRow: 5, rows: 1 }]);
  assert.deepEqual(splitRows({ firstRow: 5, rows: 0 }, 4), []);
});

test('a rank reads no block without rows of its own', async () => {
  const fence = await newFence();
  await new Gang(1).fill().save(fence, 1);
  const checkpoint = await openCheckpoint(fence.folder, 1);
  const { file, blocks } = CheckpointManifest.parse(checkpoint.manifest).rows.files[0]!;
  const path = join(checkpoint.directory, file);
  const bytes = await readFile(path);
  bytes[blocks[1]!.offset]! ^= 1;
  await writeFile(path, bytes);
  // Of three ranks, the first has the rows 0 to 3, and the last 8 to 10.
  const [first, second, last] = new Gang(3).sessions;
  await loadCheckpoint(first!, checkpoint, JOB);
  await loadCheckpoint(last!, checkpoint, JOB);
  assert.match((await refusal(loadCheckpoint(second!, checkpoint, JOB))).message, /the digest .* of rows 4 to 8;/);
});

test('of class centres with another optimizer, only the centres are loaded', async () => {
  const fence = await newFence();
  const saved = new Gang(1).fill();
  await saved.save(fence, 5);
  const path = manifestPath(checkpointDirectory(fence.folder, 5));
  const good = JSON.parse(await readFile(path, 'utf8')) as CheckpointManifest;
  assert.equal(good.rows.optimizer, 'SGD');
  await writeFile(path, JSON.stringify({ ...good, rows: { ...good.rows, optimizer: 'AdaGrad' } }));
  const loaded = new Gang(2);
  await loaded.load(fence.folder);
  const rows = (gang: Gang, of: 'weight' | 'momentum') => gang.sessions.flatMap((session) => [...session[of]]);
  assert.deepEqual(rows(loaded, 'weight'), rows(saved, 'weight'));
  assert.deepEqual(new Set(rows(loaded, 'momentum')), new Set([0]));
});

test('a backbone with another optimizer is refused', async () => {
  const fence = await newFence();
  await new Gang(1).fill().save(fence, 5);
  const path = manifestPath(checkpointDirectory(fence.folder, 5));
  const good = JSON.parse(await readFile(path, 'utf8')) as CheckpointManifest;
  await writeFile(path, JSON.stringify({ ...good, backbone: { ...good.backbone, optimizer: 'AdamW' } }));
  const { message } = await refusal(new Gang(1).load(fence.folder));
  assert.match(message, /backbone\.optimizer: "AdamW"; SGD, as in this/);
});

test('what is written while the session changes is the state of the moment in which the writing began', async () => {
  const fence = await newFence();
  const gang = new Gang(2).fill();
  const pending = await Promise.all(
    gang.sessions.map(async (session, rank) => {
      const copy = await session.copyState({ backbone: rank === 0 });
      return new PendingCheckpoint(session, copy, gang.options(fence, 3, rank));
    }),
  );
  for (const session of gang.sessions) {
    session.weight.fill(0);
    session.momentum.fill(0);
    session.backbone.tensors.conv!.data.fill(0);
  }
  await Promise.all(pending.map(({ written }) => written));
  assert(pending.every(({ isWritten }) => isWritten));
  // Not before all ranks have said so.
  assert.deepEqual(await completeSteps(fence.folder), []);
  await Promise.all(pending.map((each) => each.gather()));
  await pending[0]!.completed;
  await new Gang(2).fill().save(fence, 4);
  const of = async (step: number) => {
    const { manifest } = await openCheckpoint(fence.folder, step);
    return { ...manifest, step: 0 };
  };
  assert.deepEqual(await of(3), await of(4));
});

test('what fails in the background is thrown when asked for', async () => {
  const fence = await newFence();
  const [session] = new Gang(1).fill().sessions;
  session!.saveRows = () => Promise.reject(new Error('disk full'));
  const pending = new PendingCheckpoint(session!, null, new Gang(1).options(fence, 3, 0));
  pending.throwIfFailed();
  await assert.rejects(pending.written, /disk full/);
  assert.throws(() => pending.throwIfFailed(), /disk full/);
  assert(!pending.isWritten);
});

test('a damaged newest checkpoint is set aside and the one before it is used', async () => {
  const damages: Record<string, (directory: string) => Promise<unknown>> = {
    'a file is missing': (directory) => rm(join(directory, 'backbone.safetensors')),
    'a file is cut off': (directory) => truncate(join(directory, 'rows-0000000006.safetensors'), 100),
    'the manifest is cut off': (directory) => truncate(manifestPath(directory), 100),
    'the manifest is empty': (directory) => truncate(manifestPath(directory), 0),
  };
  for (const [name, damage] of Object.entries(damages)) {
    const fence = await newFence();
    const root = fence.folder;
    for (const step of [1, 2]) await new Gang(2).fill().save(fence, step);
    await damage(checkpointDirectory(root, 2));
    const kept: (string | undefined)[] = [];
    const setAside = async (_: DamagedCheckpoint, step: number) =>
      void kept.push(await fence.setAside(checkpointDirectory(root, step)));
    assert.equal((await findNewest(root, setAside))?.manifest.step, 1, name);
    assert.deepEqual(kept, [join(root, 'damaged-step-0000000002.0000000001')], name);
    assert.deepEqual(await listed(root), ['damaged-step-0000000002.0000000001', 'step-0000000001'], name);

    // Training continues, and comes to the same step again.
    await new Gang(2).fill().save(fence, 2);
    assert.equal((await newest(root))?.manifest.step, 2, name);

    // Without an intact one, training must not begin anew, also not at the start after that.
    for (const step of [1, 2]) await damage(checkpointDirectory(root, step));
    const later = await claim(root);
    for (let start = 0; start < 2; start++) {
      const error = await refusal(
        findNewest(root, async (_, step) => void (await later.setAside(checkpointDirectory(root, step)))),
      );
      assert.match(
        error.message,
        /all checkpoints are damaged \(damaged-step-.*\); .*delete them to start from step 0/,
      );
      assert(!(error instanceof DamagedCheckpoint));
    }
  }
});

test('storage that fails is no damage', async () => {
  const fence = await newFence();
  await new Gang(1).fill().save(fence, 1);
  const directory = checkpointDirectory(fence.folder, 1);
  await rm(join(directory, 'backbone.safetensors'));
  // ELOOP stands for every error but "no such file".
  await symlink('backbone.safetensors', join(directory, 'backbone.safetensors'));
  await assert.rejects(
    newest(fence.folder),
    (error) => error instanceof FacetrainError && error.code === 'StorageFailed',
  );
  assert.deepEqual(await listed(fence.folder), ['step-0000000001']);
});

test('a folder without a manifest, as a former version left it, is removed at the next start', async () => {
  const fence = await newFence();
  const root = fence.folder;
  assert.equal(await newest(root), undefined);
  const gang = new Gang(2).fill();
  await gang.save(fence, 5);
  const unfinished = checkpointDirectory(root, 6);
  await mkdir(unfinished);
  await writeFile(join(unfinished, 'rows-0000000000.safetensors'), 'half');
  await mkdir(join(root, 'of-the-user'));
  assert.equal((await newest(root))?.manifest.step, 5);
  assert.deepEqual(await removeUnfinished(root, fence), [unfinished]);
  assert.deepEqual(await listed(root), ['of-the-user', 'step-0000000005']);
});

test('older checkpoints are deleted only when the new one is complete', async () => {
  const fence = await newFence();
  const root = fence.folder;
  const gang = new Gang(2).fill();
  for (const step of [1, 2, 3]) await gang.save(fence, step, 2);
  assert.deepEqual(await completeSteps(root), [3, 2]);
  // Rank 1's disk is full: rank 0 waits for it, and the older checkpoints stay.
  const [first, second] = gang.sessions;
  second!.saveRows = () => Promise.reject(new Error('disk full'));
  const broken = gang.save(fence, 4, 2);
  await assert.rejects(broken, /disk full/);
  await gang.arrived(first!);
  assert.deepEqual(await completeSteps(root), [3, 2]);
  await prune(new FolderTarget(fence), { keep: 1, keepBest: 0 }, 'j');
  assert.deepEqual(await listed(root), ['step-0000000003']);
});

test('checkpoints of another job, and those that do not tell whose they are, stay and do not count', async () => {
  const fence = await newFence();
  const root = fence.folder;
  const gang = new Gang(1).fill();
  for (const step of [1, 2, 3]) await gang.save(fence, step, 2, 'other');
  assert.deepEqual(await completeSteps(root), [3, 2]);
  for (const step of [4, 5, 6]) await gang.save(fence, step, 2, 'j');
  assert.deepEqual(await completeSteps(root), [6, 5, 3, 2]);
  await truncate(manifestPath(checkpointDirectory(root, 5)), 0);
  for (const step of [7, 8]) await gang.save(fence, step, 2, 'j');
  assert.deepEqual(await completeSteps(root), [8, 7, 5, 3, 2]);
});

test('beside the newest, the checkpoints that verify best stay', async () => {
  const fence = await newFence();
  const root = fence.folder;
  const gang = new Gang(1).fill();
  const note = (step: number, ...accuracies: number[]) =>
    noteEvaluation(fence, {
      job: 'j',
      step,
      sets: accuracies.map((accuracy, index) => ({ set: `set-${index}`, accuracy })),
    });
  const accuracies: Record<number, number[]> = { 1: [0.5, 0.9], 2: [0.8, 0.8], 4: [0.6, 0.6], 5: [0.8, 0.8] };
  for (let step = 1; step <= 7; step++) {
    await gang.save(fence, step, 1, 'j', 2);
    // Those of steps 3, 6 and 7 were not evaluated.
    const found = accuracies[step];
    if (found) await note(step, ...found);
  }
  assert.deepEqual(await completeSteps(root), [7, 5, 2]);
  // What was deleted is forgotten, and what another job has found does not count.
  await note(7, 0.1);
  assert.deepEqual(
    (await readEvaluations(root)).map(({ step }) => step),
    [2, 5, 7],
  );
  const evaluations = await readEvaluations(root);
  const found = (job: string, time?: string) => evaluationOf(evaluations, { job, step: 5, time });
  assert.equal(meanAccuracy(found('j', '2026-01-01T00:00:00.000Z')!), 0.8);
  assert.equal(found('other'), undefined);
  await prune(new FolderTarget(fence), { keep: 1, keepBest: 1 }, 'j');
  assert.deepEqual(await completeSteps(root), [7, 5]);
  // A file that is damaged costs the best, not the training.
  await writeFile(join(root, CHECKPOINT_EVALUATIONS), '{"schemaVersion": 1');
  await prune(new FolderTarget(fence), { keep: 1, keepBest: 1 }, 'j');
  assert.deepEqual(await completeSteps(root), [7]);
});

test('an evaluation of a checkpoint that another took the place of does not count', async () => {
  const fence = await newFence();
  const root = fence.folder;
  const gang = new Gang(1).fill();
  const timeOf = async (step: number) => (await openAt(checkpointDirectory(root, step))).manifest.time;
  const note = (step: number, accuracy: number, time: string) =>
    noteEvaluation(fence, { job: 'j', step, time, sets: [{ set: 'lfw', accuracy }] });
  for (const step of [1, 2, 3]) await gang.save(fence, step, 3);
  // Of the job of this name that was there before.
  await note(1, 0.9, '2020-01-01T00:00:00.000Z');
  await note(2, 0.5, await timeOf(2));
  const path = checkpointDirectory(root, 2);
  const shown = async () => (await compareCheckpoints(await openAt(path), await openAt(path))).accuracy;
  assert.deepEqual(await shown(), [{ set: 'lfw', first: 0.5, second: 0.5 }]);
  await prune(new FolderTarget(fence), { keep: 1, keepBest: 1 }, 'j');
  assert.deepEqual(await completeSteps(root), [3, 2]);
  await note(2, 0.6, '2020-01-01T00:00:00.000Z');
  assert.deepEqual(await shown(), []);
  await prune(new FolderTarget(fence), { keep: 1, keepBest: 1 }, 'j');
  assert.deepEqual(await completeSteps(root), [3]);
});

/** A gang of one rank that takes the folder, continues from what is there, and writes `keep` checkpoints. */
async function attempt(root: string, number: number, keep = 1): Promise<number> {
  const fence = await claim(root, number);
  try {
    await removeUnfinished(root, fence);
    const checkpoint = await findNewest(
      root,
      async (_, step) => void (await fence.setAside(checkpointDirectory(root, step))),
    );
    const gang = new Gang(1).fill();
    if (checkpoint) await loadCheckpoint(gang.sessions[0]!, checkpoint, JOB);
    const first = (checkpoint?.manifest.step ?? 0) + 1;
    for (let step = first; step < first + keep; step++) {
      // What this attempt trains differs from what another one does.
      gang.sessions[0]!.weight[0] = 1000 * number + step;
      await gang.save(fence, step, keep);
    }
    return first + keep - 1;
  } catch (error) {
    throw await fence.explain(error);
  }
}

/** Two checkpoints, of which the newer is damaged, and one that a former version did not finish. */
async function folderWithAll(): Promise<string> {
  const root = join(top, String(folders++));
  await attempt(root, 0, 2);
  await truncate(join(checkpointDirectory(root, 2), 'backbone.safetensors'), 10);
  await mkdir(checkpointDirectory(root, 9));
  return root;
}

/** Names and digests of all files. */
async function digests(root: string): Promise<string[]> {
  const entries = await readdir(root, { recursive: true, withFileTypes: true });
  const paths = entries.filter((entry) => entry.isFile()).map(({ parentPath, name }) => join(parentPath, name));
  return Promise.all(paths.sort().map(async (path) => `${path} ${(await digestFile(path)).sha256}`));
}

test('the next attempt continues from what a rank 0 left that was killed at any file operation', async () => {
  for (let number = 1; ; number++) {
    const root = await folderWithAll();
    const killed = new SimulatedProcess('killed', (operation) => operation.number === number);
    const { reached } = await killed.run(() => attempt(root, 1));
    const [newestOfKilled] = await completeSteps(root);
    const step = await attempt(root, 2);
    assert.deepEqual(await completeSteps(root), [step], `operation ${number}`);
    // The killed one found step 2 damaged, unless it did not come to that, and may have finished step 2 anew.
    assert([1, newestOfKilled].includes(step - 1), `operation ${number}: ${newestOfKilled}, then ${step}`);
    await new Gang(1).load(root);
    assert.equal((await listed(root)).filter((name) => name.startsWith('damaged-')).length, 1, `operation ${number}`);
    assert.deepEqual(await readdir(join(root, OUTPUT.fences)).then((names) => names.length), 1, `operation ${number}`);
    if (!reached) break;
    assert(number < 1000);
  }
});

test('a rank 0 that is frozen before any of its file operations changes nothing when it wakes', async () => {
  let number = 1;
  for (; ; number++) {
    const root = await folderWithAll();
    const old = new SimulatedProcess('frozen', (operation) => operation.number === number);
    const { reached, ended } = await old.run(() => attempt(root, 1));
    if (!reached) break;
    await attempt(root, 2);
    const before = await digests(root);
    old.wake();
    const error = await ended.then(
      () => undefined,
      (reason: unknown) => reason,
    );
    assert.deepEqual(await digests(root), before, `operation ${number}`);
    // Frozen after its last change, it ends as if nothing had happened.
    if (error === undefined) break;
    assert(error instanceof FacetrainError && error.code === 'FencedOff', `operation ${number}: ${String(error)}`);
    assert(number < 1000);
  }
  assert(number > 40, `only ${number} operations`);
});

test('two checkpoints are compared: fields, distance of the backbone, angles of the class centres', async () => {
  const fence = await newFence();
  const root = fence.folder;
  const before = new Gang(1).fill();
  await before.save(fence, 5);
  // By other ranks, so that blocks have other borders.
  const after = new Gang(3).fill();
  after.sessions[0]!.backbone.tensors.conv!.data.set([1, 4]);
  const turned = after.sessions.find(({ rowRange: { firstRow, rows } }) => firstRow <= 6 && 6 < firstRow + rows)!;
  const at = (6 - turned.rowRange.firstRow) * DIM;
  const old = turned.weight.slice(at, at + DIM);
  // By 90 degrees, and twice as long.
  turned.weight.set([-2 * old[1]!, 2 * old[0]!, -2 * old[3]!, 2 * old[2]!], at);
  await after.save(fence, 9);
  await noteEvaluation(fence, { job: 'j', step: 9, sets: [{ set: 'lfw', accuracy: 0.75 }] });

  const open = (step: number) => openAt(checkpointDirectory(root, step));
  const found = await compareCheckpoints(await open(5), await open(9));
  assert.deepEqual(found.fields, [
    { field: 'step', first: 5, second: 9 },
    { field: 'worldSize', first: 1, second: 3 },
  ]);
  assert.deepEqual(found.accuracy, [{ set: 'lfw', first: null, second: 0.75 }]);
  // conv moved by 2, of a length of sqrt(1 + 4); with the mean, 3, the whole of sqrt(14).
  assert.deepEqual([found.backbone.tensors, found.backbone.different], [2, []]);
  assert.deepEqual(found.backbone.largest[0], { name: 'conv', distance: 2 / Math.sqrt(5) });
  assert.equal(found.backbone.distance, 2 / Math.sqrt(14));
  assert.deepEqual([found.centres?.compared, found.centres?.unchanged], [11, 10]);
  assert.deepEqual(found.centres?.largest, [{ row: 6, degrees: 90 }]);

  const foreign = new Gang(1).fill();
  const { backbone } = foreign.sessions[0]!;
  backbone.tensors = Object.fromEntries(Object.entries(backbone.tensors).map(([name, each]) => [`own.${name}`, each]));
  await foreign.save(fence, 12);
  const { tensors, distance, different } = (await compareCheckpoints(await open(9), await open(12))).backbone;
  assert.deepEqual([tensors, distance, different.length], [0, null, 4]);
  assert.deepEqual([found.centres?.angle.median, found.centres?.angle.largest], [0, 90]);

  const same = await compareCheckpoints(await open(9), await open(9));
  assert.deepEqual([same.fields, same.backbone.distance, same.centres?.unchanged], [[], 0, 11]);
  await truncate(join(checkpointDirectory(root, 9), 'backbone.safetensors'), 10);
  await refusal(compareCheckpoints(await open(5), await open(9)));
  await refusal(openAt(root));
});

describe('identities of checkpoints on disk', () => {
  /** Two checkpoints of 11 classes by three ranks, with blocks of 4 rows. */
  async function twoCheckpoints(): Promise<{ fence: Fence; root: string }> {
    const fence = await newFence();
    const gang = new Gang(3).fill();
    for (const step of [1, 2]) await gang.save(fence, step);
    return { fence, root: fence.folder };
  }
  const edited = (fence: Fence, { checkpoint }: OpenHead) => editedFolder(fence, checkpoint.directory);
  const rowBytesOf = (id: number) =>
    Buffer.from(new Float32Array(Array.from({ length: DIM }, (_, i) => id * DIM + i + 0.25)).buffer);
  const all = async (root: string, editOf: (head: OpenHead) => HeadEdit | Promise<HeadEdit>, fence: Fence) => {
    for (const head of await openHeads(root)) await editHead(edited(fence, head), head, await editOf(head));
  };
  const rows = async (root: string, step: number, ...ids: number[]) => {
    const found = await rowsOf(await openCheckpoint(root, step), ids);
    return ids.map((id) => [...found.get(id)!]);
  };

  test('a removed class is zero in every checkpoint, in no file any more, and stays so in the next', async () => {
    const { fence, root } = await twoCheckpoints();
    assert.equal((await searchBytes(root, [rowBytesOf(5)])).found.length, 2);
    await all(root, (head) => removal(head, [5, 9]), fence);
    const search = await searchBytes(root, [rowBytesOf(5), rowBytesOf(9)]);
    assert.deepEqual(search.found, []);
    assert.ok(search.files >= 2 * 5, `searched ${search.files} files`);
    assert.equal((await searchBytes(root, [rowBytesOf(6)])).found.length, 2);

    // Any number of ranks reads it: the row and its momentum are zero, all others as they were.
    const gang = new Gang(2);
    await gang.load(root);
    for (const { rowRange, weight, momentum } of gang.sessions)
      for (let row = 0; row < rowRange.rows; row++) {
        const id = rowRange.firstRow + row;
        const isGone = id === 5 || id === 9;
        assert.deepEqual(
          [weight[row * DIM], momentum[row * DIM + 1]],
          isGone ? [0, 0] : [id * DIM + 0.25, -(id * DIM + 1)],
        );
      }
    const checkpoint = await openCheckpoint(root, 2);
    const identities = await readIdentities(checkpoint);
    assert.deepEqual(identities.retired, [
      { class: 5, into: null },
      { class: 9, into: null },
    ]);
    assert.deepEqual((checkpoint.manifest as CheckpointManifest).requires, ['retired']);

    await Promise.all(
      gang.sessions.map((session, rank) => saveCheckpoint(session, { ...gang.options(fence, 3, rank), identities })),
    );
    assert.deepEqual(await readIdentities(await openCheckpoint(root, 3)), identities);
    assert.deepEqual(await rows(root, 3, 5, 9), [Array(DIM).fill(0), Array(DIM).fill(0)]);
  });

  test('the same removal again changes nothing; one that was cut off is completed', async () => {
    const { fence, root } = await twoCheckpoints();
    /** Throws in place of the operation of this number, from 1 on. */
    const killedAt = (number: number) => {
      let done = 0;
      const count = () => {
        if (++done === number) throw new Error('killed');
      };
      const write: Fence['write'] = async (...args) => {
        count();
        await fence.write(...args);
      };
      const remove: Fence['remove'] = async (...args) => {
        count();
        await fence.remove(...args);
      };
      return { write, remove } as Fence;
    };
    // A file of rows, the retired classes, the manifest, the old file.
    for (const number of [1, 2, 3, 4]) {
      const [head] = await openHeads(root);
      await assert.rejects(editHead(edited(killedAt(number), head!), head!, removal(head!, [5])), /killed/);
      // The checkpoint is whole: the old head, or the new one.
      await new Gang(2).load(root);
    }
    await all(root, (head) => removal(head, [5]), fence);
    const before = await digests(root);
    assert.deepEqual((await searchBytes(root, [rowBytesOf(5)])).found, []);
    await all(root, (head) => removal(head, [5]), fence);
    assert.deepEqual(await digests(root), before);
  });

  test('merged classes: the row is the mean direction at the mean length, the others are zero and named', async () => {
    const { fence, root } = await twoCheckpoints();
    await all(root, (head) => merger(head, [2, 7], 4), fence);
    const [two, seven, four] = await rows(root, 2, 2, 7, 4);
    assert.deepEqual([two, seven], [Array(DIM).fill(0), Array(DIM).fill(0)]);
    const before = [2, 7, 4].map((id) => Array.from({ length: DIM }, (_, i) => id * DIM + i + 0.25));
    const length = (row: number[]) => Math.hypot(...row);
    const mean = before[0]!.map((_, i) => before.reduce((sum, row) => sum + row[i]! / length(row), 0));
    const meanLength = before.reduce((sum, row) => sum + length(row), 0) / 3;
    four!.forEach((value, i) => {
      assert.ok(Math.abs(value - (mean[i]! * meanLength) / length(mean)) < 1e-4);
    });
    // A class that was merged goes along with the one that it was merged into.
    await all(root, (head) => merger(head, [4], 0), fence);
    assert.deepEqual((await readIdentities(await openCheckpoint(root, 1))).retired, [
      { class: 2, into: 0 },
      { class: 4, into: 0 },
      { class: 7, into: 0 },
    ]);
    const [merged] = await openHeads(root);
    await assert.rejects(merger(merged!, [3], 4), /class 4: it was merged into class 0 before; class 0, or another/);
    await all(root, (head) => removal(head, [0]), fence);
    assert.deepEqual(
      (await readIdentities(await openCheckpoint(root, 1))).retired.map(({ into }) => into),
      [null, null, null, null],
    );
    const [head] = await openHeads(root);
    await assert.rejects(merger(head!, [3], 4), /class 4: it was removed before; a class that is trained/);
    assert.throws(() => removal(head!, [11]), /class 11: the head has no such class; 0 to 10/);
  });

  test('added classes follow the last, at the others’ mean length, and any number of ranks reads them', async () => {
    const { fence, root } = await twoCheckpoints();
    const directions = [1, 2, 3].map((axis) => Float32Array.from({ length: DIM }, (_, i) => (i === axis ? 9 : 0)));
    await all(root, (head) => addition(head, directions), fence);
    const { manifest } = await openCheckpoint(root, 2);
    assert.equal(manifest.numClasses, 14);
    const lengths = Array.from({ length: 11 }, (_, id) =>
      Math.hypot(...Array.from({ length: DIM }, (_, i) => id * DIM + i + 0.25)),
    );
    const meanLength = lengths.reduce((sum, value) => sum + value) / 11;
    const added = await rows(root, 2, 11, 12, 13);
    added.forEach((row, index) => {
      assert.ok(Math.abs(row[index + 1]! - meanLength) < 1e-4);
      assert.equal(row.filter((value) => value !== 0).length, 1);
    });
    const gang = new Gang(4, 14);
    // The dataset has grown, so its epochs may be longer.
    for (const session of gang.sessions) Object.assign(session, { stepsPerEpoch: 12 });
    await gang.load(root, { ...JOB, numClasses: 14 });
    const last = gang.sessions.at(-1)!;
    assert.deepEqual([...last.weight.slice(-DIM)], added[2]);
    assert.deepEqual([...last.momentum.slice(-DIM)], Array(DIM).fill(0));
  });

  test('a class whose pictures cancel each other is not added', async () => {
    const { root } = await twoCheckpoints();
    const [head] = await openHeads(root);
    for (const nothing of [new Float32Array(DIM), new Float32Array(DIM).fill(Number.NaN)])
      await assert.rejects(
        addition(head!, [new Float32Array(DIM).fill(1), nothing]),
        /class 12: its pictures have embeddings whose mean has no direction/,
      );
  });

  test('only blocks with one of the classes are read; damage in another is found by who reads that', async () => {
    const fence = await newFence();
    const root = fence.folder;
    // One file with blocks of the classes 0 to 3, 4 to 7, and 8 to 10.
    await new Gang(1).fill().save(fence, 1);
    const [head] = (await openHeads(root)) as [OpenHead];
    const [file] = head.checkpoint.manifest.rows.files;
    const path = join(head.checkpoint.directory, file!.file);
    const bytes = await readFile(path);
    bytes[file!.blocks[2]!.offset]! ^= 1;
    await writeFile(path, bytes);
    assert.equal((await rows(root, 1, 0))[0]![0], 0.25);
    await assert.rejects(rows(root, 1, 8), DamagedCheckpoint);
    await editHead(edited(fence, head), head, removal(head, [5]));
    assert.deepEqual(await rows(root, 1, 5), [Array(DIM).fill(0)]);
    await assert.rejects(rows(root, 1, 8), DamagedCheckpoint);
  });

  test('a search finds what lies across two of its chunks, at any byte', async () => {
    const root = await mkdtemp(join(tmpdir(), 'facetrain-search-'));
    const needle = rowBytesOf(5);
    const few = [rowBytesOf(9), needle];
    // Some begin as the content does, or as the one that is there.
    const many = [
      ...Array.from({ length: 100 }, (_, id) => rowBytesOf(100 + id)),
      Buffer.concat([Buffer.alloc(8, 7), needle]),
      Buffer.concat([needle.subarray(0, 8), Buffer.alloc(8)]),
    ];
    const content = Buffer.alloc(2 ** 23 + 100, 7);
    for (const at of [2 ** 23 - 5, 2 ** 23 + 1, 0, content.length - needle.length]) {
      const file = Buffer.from(content);
      needle.copy(file, at);
      await writeFile(join(root, 'file'), file);
      for (const sought of [few, [...many.slice(0, 100), needle]])
        assert.equal((await searchBytes(root, sought)).found.length, 1, `at ${at}`);
    }
    await writeFile(join(root, 'file'), content);
    for (const sought of [few, many]) assert.deepEqual((await searchBytes(root, sought)).found, []);
    await rm(root, { recursive: true });
  });

  test('BF16 rows are written as they are kept', () => {
    const floats = (bytes: Uint8Array) => [...toFloats(bytes, 'bfloat16')];
    assert.deepEqual(
      floats(toStored(Float32Array.of(1, -2.5, 1.00390625, 3.0e38), 'bfloat16')).slice(0, 3),
      [1, -2.5, 1],
    );
  });
});
