/** Checkpoints of a gang whose sessions hold plain arrays, written and read by any numbers of ranks. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { CheckpointManifest, FacetrainError } from '@facetrain/api';
import type { BackboneState, Rows, TrainingSessionContract } from '@facetrain/native';
import { checkpointDirectory, completeSteps, findNewest, manifestPath, prune, removeUnfinished } from './directory.ts';
import { type JobFacts, loadCheckpoint } from './load.ts';
import { saveCheckpoint } from './save.ts';

const DIM = 4;
const top = await mkdtemp(join(tmpdir(), 'checkpoint-'));
after(() => rm(top, { recursive: true }));
let folders = 0;
const newRoot = () => join(top, String(folders++));

/** The state of a session, without training. */
class FakeSession {
  readonly dim = DIM;
  readonly stepsPerEpoch = 10;
  readonly rowRange: { firstRow: number; rows: number };
  readonly weight: Float32Array;
  readonly momentum: Float32Array;
  backbone: BackboneState;
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
    return { firstRow, rows, weight: this.weight.slice(...range), momentum: this.momentum.slice(...range) };
  }
  async loadRows({ firstRow, weight, momentum }: Rows): Promise<void> {
    this.weight.set(weight, (firstRow - this.rowRange.firstRow) * DIM);
    this.momentum.set(momentum, (firstRow - this.rowRange.firstRow) * DIM);
  }
  allGather(values: Float32Array): Promise<Float32Array[]> {
    return this.#gang.gather(values, this);
  }
  async barrier(): Promise<void> {
    await this.allGather(new Float32Array(0));
  }
}

const JOB: JobFacts = { name: 'j', seed: 1, numClasses: 11, totalSteps: 100 };

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
    const deadline = Date.now() + 10_000;
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

  save(root: string, step: number, keep = 100): Promise<unknown[]> {
    return Promise.all(
      this.sessions.map((session, rank) =>
        saveCheckpoint(session, {
          root,
          keep,
          step,
          rank,
          worldSize: this.sessions.length,
          job: { name: 'j', uid: 'u' },
          seed: 1,
          numClasses: 11,
          history: { lossFirst: 9, trainSeconds: 2, recentLosses: [9, 8] },
          time: new Date(0),
        }),
      ),
    );
  }

  async load(root: string, expected = JOB): Promise<void> {
    const checkpoint = await findNewest(root);
    assert(checkpoint);
    await Promise.all(this.sessions.map((session) => loadCheckpoint(session, checkpoint, expected)));
  }
}

async function refusal(promise: Promise<unknown>): Promise<FacetrainError> {
  const error = await promise.then(
    () => assert.fail('not refused'),
    (error: unknown) => error,
  );
  assert(error instanceof FacetrainError && error.code === 'InvalidCheckpoint', String(error));
  return error;
}

test('a checkpoint written by any number of ranks loads on any other', async () => {
  for (const writers of [1, 2, 4]) {
    const root = newRoot();
    await new Gang(writers).fill().save(root, 7);
    const { manifest } = (await findNewest(root))!;
    assert.deepEqual(CheckpointManifest.parse(manifest), manifest);
    assert.deepEqual(
      manifest.rows.map(({ firstRow, rows }) => [firstRow, rows]),
      new Gang(writers).sessions.map(({ rowRange }) => [rowRange.firstRow, rowRange.rows]),
    );
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

test('a rank reads only the files that hold its rows', async () => {
  const root = newRoot();
  await new Gang(11).fill().save(root, 1);
  const directory = checkpointDirectory(root, 1);
  await rm(join(directory, 'rows-0000000010.safetensors'));
  const [first, last] = new Gang(2).sessions;
  const checkpoint = (await findNewest(root))!;
  await loadCheckpoint(first!, checkpoint, JOB);
  assert.match(
    (await refusal(loadCheckpoint(last!, checkpoint, JOB))).message,
    /rows-0000000010.safetensors: no such file/,
  );
});

test('a checkpoint that does not fit or was changed is refused, naming the file and the difference', async () => {
  const root = newRoot();
  await new Gang(2).fill().save(root, 30);
  const directory = checkpointDirectory(root, 30);
  const load = (change: Partial<JobFacts> = {}, gang = new Gang(1)) => gang.load(root, { ...JOB, ...change });
  await load({ name: null });
  assert.match(
    (await refusal(load({ name: 'k' }))).message,
    /manifest.json: job.name: "j"; "k", the name of this job; .* checkpoint.uri to this folder to continue/,
  );
  assert.match((await refusal(load({ seed: 2 }))).message, /manifest.json: seed: 1; 2, as in this job/);
  assert.match((await refusal(load({ numClasses: 12 }))).message, /numClasses: 11; 12, as in this job/);
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
    assert.match((await refusal(load())).message, new RegExp(`${file}: the digest`));
    await truncate(path, good.length - 4);
    assert.match((await refusal(load())).message, new RegExp(`${file}: ${good.length - 4} bytes; ${good.length}`));
    await writeFile(path, good);
  }
  await load();
});

test('an invalid manifest is refused, also one without some rows or with files in other folders', async () => {
  const root = newRoot();
  await new Gang(2).fill().save(root, 5);
  const path = manifestPath(checkpointDirectory(root, 5));
  const good = JSON.parse(await readFile(path, 'utf8')) as CheckpointManifest;
  const refusedAs = async (change: unknown) => {
    await writeFile(path, typeof change === 'string' ? change : JSON.stringify({ ...good, ...(change as object) }));
    return (await refusal(findNewest(root))).message;
  };
  assert.match(await refusedAs('{'), /manifest.json: not JSON/);
  assert.match(await refusedAs({ schemaVersion: 2 }), /manifest.json: schemaVersion/);
  assert.match(await refusedAs({ step: 6 }), /step: 6; 5, as the folder/);
  assert.match(await refusedAs({ rows: good.rows.slice(1) }), /starts at row 6; row 0/);
  assert.match(await refusedAs({ rows: good.rows.slice(0, 1) }), /rows: 6 rows; 11/);
  assert.match(await refusedAs({ rows: [...good.rows, ...good.rows] }), /neither gaps nor overlaps/);
  assert.match(
    await refusedAs({ backbone: { ...good.backbone, file: '../../secret' } }),
    /the file name "..\/..\/secret"/,
  );
});

test('a folder without a manifest is no checkpoint, and is removed at the next start', async () => {
  const root = newRoot();
  assert.equal(await findNewest(root), undefined);
  const gang = new Gang(2).fill();
  await gang.save(root, 5);
  const unfinished = checkpointDirectory(root, 6);
  await mkdir(unfinished);
  await writeFile(join(unfinished, 'rows-0000000000.safetensors'), 'half');
  await mkdir(join(root, 'of-the-user'));
  assert.equal((await findNewest(root))?.manifest.step, 5);
  assert.deepEqual(await removeUnfinished(root), [unfinished]);
  assert.deepEqual((await readdir(root)).sort(), ['of-the-user', 'step-0000000005']);
});

test('older checkpoints are deleted only when the new one is complete', async () => {
  const root = newRoot();
  const gang = new Gang(2).fill();
  for (const step of [1, 2, 3]) await gang.save(root, step, 2);
  assert.deepEqual(await completeSteps(root), [3, 2]);
  // Rank 1's disk is full: rank 0 waits for it, and the older checkpoints stay.
  const [first, second] = gang.sessions;
  second!.saveRows = () => Promise.reject(new Error('disk full'));
  const broken = gang.save(root, 4, 2);
  await assert.rejects(broken, /disk full/);
  await gang.arrived(first!);
  assert.deepEqual(await completeSteps(root), [3, 2]);
  await prune(root, 1);
  assert.deepEqual(await readdir(root).then((names) => names.sort()), ['step-0000000003', 'step-0000000004']);
});
