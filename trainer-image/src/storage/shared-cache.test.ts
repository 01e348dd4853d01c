/** Several processes that fetch the same objects to one folder, from a real S3 server that is slow. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { Upload } from '@aws-sdk/lib-storage';
import { FacetrainError } from '@facetrain/api';
import { AWS_ENVIRONMENT, type S3Proxy, type S3Server, startS3Server } from '../testing/s3-server.ts';
import { type Fetched, fetchTo } from './fetch.ts';
import { publish } from './publish.ts';
import { s3Client } from './s3.ts';

const MAIN = join(import.meta.dirname, '..', 'main.ts');
const FACES = Buffer.alloc(8 * 2 ** 20, 'faces');
const PART = 2 ** 18;
/** Shorter than in production, so that dead holders are noticed soon; long enough for a busy machine. */
const QUICK = { beat: 50, stale: 1_000 };

let server: S3Server;
let proxy: S3Proxy;
let gets: { key: string; range: string }[];
let scratch: string;
let to: string;

before(async () => {
  Object.assign(process.env, AWS_ENVIRONMENT);
  server = await startS3Server('models');
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-faces-'));
  await writeFile(join(folder, 'train.rec'), FACES);
  await writeFile(join(folder, 'property'), '40,112,112');
  await publish(folder, ['train.rec', 'property'], server.address('s3://models/faces'));
  await rm(folder, { recursive: true });
  proxy = await server.proxy('models', async ({ key, range, body, response }) => {
    gets.push({ key, range });
    for (let at = 0; at < body.length && !response.destroyed; at += PART) {
      response.write(body.subarray(at, at + PART));
      await delay(10);
    }
    response.end();
  });
});
after(async () => {
  proxy.close();
  await server.stop();
});
beforeEach(async () => {
  gets = [];
  // In memory, where it can be: a disk with much work flushes a heartbeat later than a dead holder is noticed.
  scratch = await mkdtemp(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'facetrain-shared-'));
  to = join(scratch, 'store', 'faces');
});
afterEach(() => rm(scratch, { recursive: true, force: true }));

const request = (uri = 's3://models/faces', path = to) => ({
  ...server.address(uri),
  endpoint: proxy.endpoint,
  to: path,
  shared: true,
});
const getsOf = (key: string) => gets.filter((get) => get.key === key);
const downloaded = (fetched: Fetched[]): number => fetched.filter(({ written }) => written).length;

/** A process that fetches, with short times between its heartbeats. */
function fetcher(from = request()): ChildProcess {
  const module = JSON.stringify(join(import.meta.dirname, 'fetch.ts'));
  const call = `await fetchTo(JSON.parse(process.argv[1]), undefined, ${JSON.stringify(QUICK)});`;
  const program = `import { fetchTo } from ${module}; ${call}`;
  return spawn(process.execPath, ['--input-type=module', '--eval', program, JSON.stringify(from)], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
}

/** `facetrain-trainer fetch`, as in the pods. */
async function fetchInPod({ uri, to: path }: { uri: string; to: string }): Promise<{ code: number; log: string }> {
  const args = [
    'fetch',
    '--uri',
    uri,
    '--to',
    path,
    '--shared',
    '--endpoint',
    proxy.endpoint,
    '--region',
    'us-east-1',
    '--force-path-style',
  ];
  const child = spawn(process.execPath, [MAIN, ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
  let log = '';
  child.stderr.on('data', (text) => (log += text));
  const [code] = (await once(child, 'close')) as [number];
  return { code, log };
}

/**
 * Waits until the partial file of train.rec has so many bytes, and property is no longer locked: a process that is
 * killed while it releases a lock leaves the claim.
 * @returns the path of the partial file
 */
async function partialOf(bytes: number): Promise<string> {
  // A process that has failed writes none.
  for (const end = performance.now() + 120_000; performance.now() < end; ) {
    const names = await readdir(to).catch(() => []);
    const busy = names.some((name) => name.startsWith('.property.'));
    for (const name of busy ? [] : names) {
      const path = join(to, name);
      if (name.endsWith('.partial') && ((await stat(path).catch(() => null))?.size ?? -1) >= bytes) return path;
    }
    await delay(5);
  }
  throw new Error(`no partial file of ${bytes} bytes in ${to}`);
}

/** The folder has all files, and no others. */
async function isWhole(): Promise<void> {
  assert.deepEqual((await readdir(to)).sort(), ['property', 'train.rec']);
  assert.deepEqual(await readFile(join(to, 'train.rec')), FACES);
  assert.deepEqual(await readdir(join(scratch, 'store')), ['faces']);
}

test('one trainer of a gang downloads an object, and the others wait for it', async () => {
  // One process fetches only the folder's largest file: a verification set may be in the folder of the faces.
  const ended = await Promise.all(
    [...Array.from({ length: 3 }, () => request()), request('s3://models/faces/train.rec', join(to, 'train.rec'))].map(
      fetchInPod,
    ),
  );
  assert.deepEqual(
    ended.map(({ code }) => code),
    [0, 0, 0, 0],
    ended.map(({ log }) => log).join(''),
  );
  assert.deepEqual(gets.map(({ key }) => key).sort(), ['faces/property', 'faces/train.rec']);
  assert.equal(
    ended.reduce((sum, { log }) => sum + Number(/"downloaded":(\d+)/.exec(log)![1]), 0),
    2,
  );
  assert(
    ended.some(({ log }) =>
      /"holder":"\S+ \(process \d+\)".*waiting for another process that fetches the same/.test(log),
    ),
  );
  await isWhole();
});

test('a waiter continues the partial file of a killed process', async () => {
  const child = fetcher();
  await partialOf(4 * PART);
  const waiting = [
    fetchTo(request(), undefined, QUICK),
    fetchTo(request(), undefined, QUICK),
    fetchTo(request(), undefined, QUICK),
  ];
  child.kill('SIGKILL');
  await once(child, 'close');
  const ended = await Promise.all(waiting);
  assert.equal(
    ended.filter((fetched) => fetched.some(({ path, written }) => written && path.endsWith('train.rec'))).length,
    1,
  );
  const ranges = getsOf('faces/train.rec').map(({ range }) => range);
  assert.equal(ranges.length, 2);
  assert.match(ranges[1]!, /^bytes=[1-9]\d*-$/);
  await isWhole();
});

describe('a frozen process does no harm when it continues', () => {
  test('after another process has finished', async () => {
    const child = fetcher();
    await partialOf(4 * PART);
    child.kill('SIGSTOP');
    await fetchTo(request(), undefined, QUICK);
    await isWhole();
    const { mtimeMs, ino } = await stat(join(to, 'train.rec'));
    child.kill('SIGCONT');
    const [code] = await once(child, 'close');
    assert.equal(code, 0);
    const { mtimeMs: mtimeAfter, ino: inoAfter } = await stat(join(to, 'train.rec'));
    assert.deepEqual([mtimeAfter, inoAfter], [mtimeMs, ino]);
    await isWhole();
  });

  test('while another process downloads', async () => {
    const child = fetcher();
    const its = await partialOf(4 * PART);
    child.kill('SIGSTOP');
    const other = fetchTo(request(), undefined, QUICK);
    while (await stat(its).catch(() => null)) await delay(5);
    child.kill('SIGCONT');
    const [[code], fetched] = await Promise.all([once(child, 'close'), other]);
    assert.equal(code, 0);
    assert(downloaded(fetched) > 0);
    assert.equal(getsOf('faces/train.rec').length, 2);
    await isWhole();
  });
});

test('a wrong partial file is not used: the download starts again', async () => {
  const child = fetcher();
  const its = await partialOf(4 * PART);
  child.kill('SIGKILL');
  await once(child, 'close');
  // What a lost machine leaves that had not flushed.
  const bytes = await readFile(its);
  await writeFile(its, bytes.fill(0, PART));
  await fetchTo(request(), undefined, QUICK);
  assert.deepEqual(
    getsOf('faces/train.rec').map(({ range }) => range && 'some'),
    ['', 'some', ''],
  );
  await isWhole();
});

test('without a digest of the server, bytes that may not have been flushed are not used', async () => {
  const client = s3Client(server.address(''));
  await new Upload({
    client,
    params: { Bucket: 'models', Key: 'parts/train.rec', Body: FACES },
    partSize: 5 * 2 ** 20,
  }).done();
  client.destroy();
  const child = fetcher(request('s3://models/parts'));
  await partialOf(4 * PART);
  child.kill('SIGKILL');
  await once(child, 'close');
  await fetchTo(request('s3://models/parts'), undefined, QUICK);
  assert.deepEqual(
    getsOf('parts/train.rec').map(({ range }) => range),
    ['', ''],
  );
  assert.deepEqual(await readFile(join(to, 'train.rec')), FACES);
});

test('an abort ends the wait', async () => {
  const child = fetcher();
  await partialOf(PART);
  const controller = new AbortController();
  const waiting = fetchTo(request(), controller.signal, { ...QUICK, onWait: () => controller.abort() });
  await assert.rejects(waiting, { name: 'AbortError' });
  await once(child, 'close');
  await isWhole();
});

test('a shared fetch is possible from an object store only', async () => {
  await assert.rejects(fetchTo({ ...request(`file://${scratch}`) }), { code: 'InvalidArgument' });
});

describe('a cache of another user', () => {
  /** Runs `work` as an unprivileged user: as `nobody` when the test runs as root, to whom permissions do not apply. */
  async function unprivileged(work: () => Promise<void>): Promise<void> {
    const root = process.geteuid!() === 0;
    if (root) process.seteuid!(65_532);
    try {
      await work();
    } finally {
      if (root) process.seteuid!(0);
    }
  }

  test('can be read by everyone when it is complete', async () => {
    await fetchTo(request());
    for (const path of [to, join(scratch, 'store'), scratch]) await chmod(path, 0o555);
    try {
      await unprivileged(async () => assert.equal(downloaded(await fetchTo(request())), 0));
    } finally {
      for (const path of [scratch, join(scratch, 'store'), to]) await chmod(path, 0o755);
    }
    assert.equal(getsOf('faces/train.rec').length, 1);
  });

  test('is an error when something must be written, with advice', async () => {
    // Makes the SDK load its modules now: the unprivileged user may not read them.
    await fetchTo(request());
    await chmod(scratch, 0o555);
    const path = join(scratch, 'other', 'faces');
    try {
      await unprivileged(() =>
        assert.rejects(fetchTo(request('s3://models/faces', path)), (error: unknown) => {
          assert(error instanceof FacetrainError);
          assert.equal(error.code, 'StorageFailed');
          assert(error.subject.startsWith(path), error.subject);
          assert.match(error.found, /permission denied \(EACCES\)/);
          assert.match(
            error.allowed,
            new RegExp(
              `a cache that user ${process.geteuid!()}, group ${process.getegid!()} may write: let an administrator`,
            ),
          );
          return true;
        }),
      );
    } finally {
      await chmod(scratch, 0o755);
    }
  });

  test('gives the permissions of its top folder to the folders below', async () => {
    const cache = join(scratch, 'cache');
    await mkdir(cache);
    await chmod(cache, 0o2777);
    const path = join(cache, 'server', 'faces');
    await fetchTo(request('s3://models/faces', path));
    for (const folder of [join(cache, 'server'), path])
      assert.equal((await stat(folder)).mode & 0o7777, 0o2777, folder);
    assert.equal((await stat(join(path, 'train.rec'))).mode & 0o111, 0);
  });
});
