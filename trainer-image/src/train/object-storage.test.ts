/** Training whose checkpoints and output are in an object store: a real server (versitygw), with faults before it. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { ExitCode, type ObjectStorePlace, type TrainerConfig, TrainReport } from '@facetrain/api';
import { ObjectStore } from '../storage/object-store.ts';
import { type Fate, type FaultyS3, startFaultyS3 } from '../testing/s3-faults.ts';
import { AWS_ENVIRONMENT, type S3Server, startS3Server } from '../testing/s3-server.ts';
import {
  killRanks,
  type Rank,
  readReport,
  runGang,
  startGang,
  trainerConfig,
  until,
  writeSmallDataset,
  writeSmallSet,
} from '../testing/training-gang.ts';

Object.assign(process.env, AWS_ENVIRONMENT);
afterEach(killRanks);
const top = await mkdtemp(join(tmpdir(), 'objects-'));
const data = join(top, 'data');
const STEPS = 9;
let server: S3Server;
let faulty: FaultyS3;
const stores: ObjectStore[] = [];
/** The model of a training that writes to folders, and is never interrupted. */
let expected: Buffer;
let losses: number[];

const settings = (folder: string) =>
  trainerConfig(folder, { dataset: { path: data, maxBadPictures: 0.001 }, globalBatchSize: 6 });

before(async () => {
  server = await startS3Server('faces');
  faulty = await startFaultyS3(server.endpoint);
  writeSmallDataset(data, { identities: 7, perIdentity: 3 });
  const folder = await mkdtemp(join(top, 'job-'));
  const { codes, ranks } = await runGang(folder, settings(folder), 2);
  assert.deepEqual(codes, [0, 0], texts(ranks));
  expected = await readFile(join(folder, 'out', 'model/backbone.onnx'));
  losses = (await readReport(settings(folder))).history.map(({ loss }) => loss);
});
after(async () => {
  for (const store of stores) store.close();
  faulty.close();
  await server.stop();
  await rm(top, { recursive: true });
});
afterEach(() => {
  faulty.decide = () => 'pass';
});

interface Job {
  folder: string;
  prefix: string;
  config: TrainerConfig;
  /** The whole output. */
  store: ObjectStore;
}

/** A job whose output is a prefix of its own, with the checkpoints in it. */
async function job(endpoint = server.endpoint): Promise<Job> {
  const folder = await mkdtemp(join(top, 'job-'));
  const prefix = `jobs/${randomUUID()}`;
  const place = (uri: string, at = endpoint): ObjectStorePlace => ({
    ...server.address(uri),
    endpoint: at,
    credentials: null,
  });
  const base = settings(folder);
  const uri = `s3://faces/${prefix}`;
  const config = {
    ...base,
    outputDirectory: uri,
    outputStore: place(uri),
    checkpoint: {
      ...base.checkpoint,
      directory: `${uri}/checkpoints`,
      store: place(`${uri}/checkpoints`),
      everySteps: 1,
    },
  };
  const store = new ObjectStore(place(uri, server.endpoint));
  stores.push(store);
  return { folder, prefix, config, store };
}

const texts = (ranks: Rank[]) => ranks.map(({ text }) => text).join('\n');
const ended = (ranks: Rank[]) => Promise.all(ranks.map((rank) => rank.ended));
const attempt = ({ config }: Job, number: number) => ({ ...config, job: { ...config.job, attempt: number } });

/** Steps that the head of the checkpoints lists. */
async function listed({ store }: Job): Promise<number[]> {
  const head = await store.get('checkpoints/fences/head.json');
  if (!head) return [];
  const { checkpoints } = JSON.parse(Buffer.from(head.bytes).toString()) as { checkpoints: { step: number }[] };
  return checkpoints.map(({ step }) => step);
}

const newest = async (each: Job) => Math.max(0, ...(await listed(each)));

async function assertTrained(each: Job, message: string): Promise<TrainReport> {
  const model = await each.store.get('model/backbone.onnx');
  assert(model && Buffer.from(model.bytes).equals(expected), `${message}: another model`);
  const report = await each.store.get('train-report.json');
  return TrainReport.parse(JSON.parse(Buffer.from(report!.bytes).toString()));
}

test('a rank is killed, and the job ends with the same model, bit for bit; then it is found finished', async () => {
  const killed = await job();
  const path = await writeSmallSet(join(top, 'pairs.bin'), 5);
  killed.config.evaluation = { sets: [{ name: 'pairs', path }], everyEpochs: null, everySteps: 2 };
  const ranks = await startGang(killed.folder, killed.config, 2);
  await until(async () => (await newest(killed)) >= 2, 300_000);
  ranks[1]!.kill('SIGKILL');
  const codes = await ended(ranks);
  const at = await newest(killed);
  if (at < STEPS) assert.deepEqual(codes, [ExitCode.peerLost, 137], texts(ranks));
  const again = await runGang(killed.folder, attempt(killed, 1), 2);
  assert.deepEqual(again.codes, [0, 0], texts(again.ranks));
  const report = await assertTrained(killed, 'after a kill');
  assert.equal(report.resumedFromStep, at);
  assert.deepEqual(
    report.history.map(({ loss }) => loss),
    losses,
  );
  assert.deepEqual(
    report.attempts!.map(({ attempt: number, fromStep }) => [number, fromStep]),
    at === 0
      ? [[1, 0]]
      : [
          [0, 0],
          [1, at],
        ],
  );
  // Each follows the checkpoint of its step; the head has that of the step at which the gang was killed.
  assert.deepEqual(
    report.evaluations.map(({ step, pairs }) => [step, pairs]),
    [2, 4, 6, 8, STEPS].map((step) => [step, 10]),
  );
  const written = await killed.store.list('tensorboard/');
  assert.match(written.join(), /^tensorboard\/events\.out\.tfevents\.[^,]+$/);
  assert((await killed.store.get('train-report.html'))!.bytes.length > 1000);

  // What the killed gang had not completed is gone.
  const objects = (await killed.store.list('checkpoints/step-')).map((name) => name.split('/')[1]);
  assert.deepEqual([...new Set(objects)].length, (await listed(killed)).length);
  assert.deepEqual((await readdir(killed.folder)).sort(), ['config.json'], 'something was staged on the disk');

  const third = await runGang(killed.folder, attempt(killed, 2), 2);
  assert.deepEqual(third.codes, [0, 0], texts(third.ranks));
  await third.ranks[0]!.logged('finished by an earlier attempt');
});

test('three ranks go on from a checkpoint of two', async () => {
  const { folder, config } = await job();
  assert.deepEqual((await runGang(folder, { ...config, epochs: 2 }, 2)).codes, [0, 0]);
  const { codes, ranks } = await runGang(folder, config, 3);
  assert.deepEqual(codes, [0, 0, 0], texts(ranks));
  assert.equal((await ranks[0]!.logged('resumed from a checkpoint')).step, 6);
});

test('a rank without class centres writes none to the store', async () => {
  const { folder, config } = await job();
  const few = join(top, 'few');
  writeSmallDataset(few, { identities: 3, perIdentity: 4 });
  // Of the blocks of 3 classes, the first of three ranks has none.
  const dataset = { path: few, maxBadPictures: 0.001 };
  const { codes, ranks } = await runGang(folder, { ...config, dataset, microBatchSize: 2, epochs: 1 }, 3);
  assert.deepEqual(codes, [0, 0, 0], texts(ranks));
});

test('a gang that freezes at any write to the store, and wakes after the next one’s end, changes nothing', async () => {
  for (const [method, name] of [
    ['PUT', /step-0000000002\/.*\/rows-/],
    ['PUT', /checkpoints\/fences\/head\.json/],
    ['PUT', /model\/backbone\.onnx/],
  ] as const) {
    const frozen = await job(faulty.endpoint);
    const reached = Promise.withResolvers<void>();
    const woken = Promise.withResolvers<void>();
    let claims = 0;
    faulty.decide = async (request): Promise<Fate> => {
      if (request.method !== method || !name.test(request.url)) return 'pass';
      // The first write of the head is the claim.
      if (String(name).includes('head') && claims++ === 0) return 'pass';
      reached.resolve();
      await woken.promise;
      return 'pass';
    };
    const old = await startGang(frozen.folder, frozen.config, 2);
    await Promise.race([reached.promise, ended(old).then(() => assert.fail(texts(old)))]);
    for (const rank of old) rank.kill('SIGSTOP');
    await Promise.all(old.map((rank) => rank.isFrozen()));

    const next = attempt(frozen, 1);
    const direct = (place: ObjectStorePlace | null) => place && { ...place, endpoint: server.endpoint };
    const { codes, ranks } = await runGang(
      frozen.folder,
      {
        ...next,
        outputStore: direct(next.outputStore),
        checkpoint: { ...next.checkpoint, store: direct(next.checkpoint.store) },
      },
      2,
    );
    assert.deepEqual(codes, [0, 0], texts(ranks));
    await assertTrained(frozen, `${name}: before it wakes`);
    const before = [await listed(frozen), (await frozen.store.head('train-report.json'))!.etag];
    woken.resolve();
    for (const rank of old) rank.kill('SIGCONT');
    assert.deepEqual(await ended(old), [ExitCode.fencedOff, ExitCode.fencedOff], `${name}\n${texts(old)}`);
    await assertTrained(frozen, `${name}: after it has woken`);
    assert.deepEqual(
      [await listed(frozen), (await frozen.store.head('train-report.json'))!.etag],
      before,
      String(name),
    );
  }
});

test('training goes on while the store is away, for one rank or for all, and its checkpoint follows', async () => {
  const away = await job(faulty.endpoint);
  // It does not end by itself, however long the store is away.
  const ranks = await startGang(away.folder, { ...away.config, epochs: 100_000 }, 2);
  await until(async () => (await newest(away)) >= 1, 300_000);
  // Files of rows are named by their first one: only rank 0 has row 0.
  const cuts = [
    { rank: 1, isCut: (url: string) => /rows-0*[1-9]/.test(url) },
    { rank: 0, isCut: () => true },
  ];
  for (const { rank, isCut } of cuts) {
    faulty.decide = ({ url }) => (isCut(url) ? 'cut' : 'pass');
    const { reason } = await until(() => {
      const told = ranks[0]!.lines.filter(
        ({ msg }) => msg === 'left a checkpoint out: the object store is away, and the one before it waits for it',
      );
      return told.flatMap((line) => line.away as { rank: number; reason: string }[]).find((each) => each.rank === rank);
    }, 120_000);
    assert.match(reason, /s3:\/\/.*checkpoints\//);
    const stuck = await newest(away);
    faulty.decide = () => 'pass';
    await until(async () => (await newest(away)) > stuck, 120_000);
  }
  ranks[0]!.kill('SIGTERM');
  assert.deepEqual(await ended(ranks), [143, 143], texts(ranks));
});

test('throttling, broken connections and lost answers change nothing', async () => {
  const troubled = await job(faulty.endpoint);
  let count = 0;
  const fates = ['slow', 'cut', 'lost'] as const;
  // Every fourth request fails, in one of three ways.
  faulty.decide = () => (++count % 4 === 0 ? fates[(count / 4) % 3]! : 'pass');
  const { codes, ranks } = await runGang(troubled.folder, troubled.config, 2);
  assert.deepEqual(codes, [0, 0], texts(ranks));
  assert(faulty.faults > 10);
  await assertTrained(troubled, 'with faults');
  assert.equal((await listed(troubled)).length, STEPS);
});

test('a damaged object is found by its digest, its checkpoint is set aside, and the one before is used', async () => {
  const damaged = await job();
  assert.deepEqual((await runGang(damaged.folder, damaged.config, 2)).codes, [0, 0]);
  await damaged.store.delete(['train-report.json']);
  const [rows] = (await damaged.store.list('checkpoints/step-0000000009/')).filter((name) => name.includes('/rows-'));
  const { bytes } = (await damaged.store.get(rows!))!;
  bytes[bytes.length - 1]! ^= 1;
  await damaged.store.put(rows!, bytes);
  const { codes, ranks } = await runGang(damaged.folder, attempt(damaged, 1), 2);
  assert.deepEqual(codes, [0, 0], texts(ranks));
  assert.equal((await ranks[0]!.logged('resumed from a checkpoint')).step, 8);
  await assertTrained(damaged, 'after damage');
  // It stays for people.
  assert((await damaged.store.list('checkpoints/step-0000000009/')).includes(rows!));
});
