/** Many processes that fetch the same to one folder, from a real S3 server that is slow. */
import assert from 'node:assert/strict';
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { after, afterEach, before, beforeEach, test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import { fetchTo } from './fetch.ts';
import { publish } from './publish.ts';
import { CREDENTIALS, startS3Server, type S3Proxy, type S3Server } from './testing.ts';

const MAIN = join(import.meta.dirname, '..', 'main.ts');
const FACES = Buffer.alloc(8 * 2 ** 20, 'faces');
const PART = 2 ** 18;
/** In place of seconds, so that the dead are noticed soon. */
const QUICK = { beat: 50, stale: 500 };

let server: S3Server;
let proxy: S3Proxy;
let gets: { key: string; range: string }[];
let scratch: string;
let to: string;

before(async () => {
  Object.assign(process.env, CREDENTIALS, { AWS_EC2_METADATA_DISABLED: 'true', AWS_SHARED_CREDENTIALS_FILE: '/nonexistent', AWS_CONFIG_FILE: '/nonexistent' });
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
  scratch = await mkdtemp(join(tmpdir(), 'facetrain-shared-'));
  to = join(scratch, 'store', 'faces');
});
afterEach(() => rm(scratch, { recursive: true, force: true }));

const request = () => ({ ...server.address('s3://models/faces'), endpoint: proxy.endpoint, to, shared: true });

/** A process of its own that fetches, with quick beats. */
function fetcher(): ChildProcess {
  const program = `import { fetchTo } from ${JSON.stringify(join(import.meta.dirname, 'fetch.ts'))}; await fetchTo(JSON.parse(process.argv[1]), undefined, ${JSON.stringify(QUICK)});`;
  return spawn(process.execPath, ['--input-type=module', '--eval', program, JSON.stringify(request())], { stdio: ['ignore', 'ignore', 'inherit'] });
}

async function partialOf(bytes: number): Promise<void> {
  for (;;) {
    for (const name of await readdir(to).catch(() => [])) if (name.endsWith('.partial') && (await readFile(join(to, name))).length >= bytes) return;
    await delay(5);
  }
}

async function isWhole(): Promise<void> {
  assert.deepEqual((await readdir(to)).sort(), ['property', 'train.rec']);
  assert.deepEqual(await readFile(join(to, 'train.rec')), FACES);
  assert.deepEqual(await readdir(join(scratch, 'store')), ['faces']);
}

test('of the trainers of a gang one downloads, and the others wait for it', async () => {
  const trainers = Array.from({ length: 4 }, () => {
    const args = ['fetch', '--uri', 's3://models/faces', '--to', to, '--shared', '--endpoint', proxy.endpoint, '--region', 'us-east-1', '--force-path-style'];
    const child = spawn(process.execPath, [MAIN, ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
    let log = '';
    child.stderr.on('data', (text) => (log += text));
    return once(child, 'close').then(([code]) => ({ code, log }));
  });
  const ended = await Promise.all(trainers);
  assert.deepEqual(ended.map(({ code }) => code), [0, 0, 0, 0]);
  assert.deepEqual(gets.map(({ key }) => key).sort(), ['faces/property', 'faces/train.rec']);
  assert.equal(ended.filter(({ log }) => /"downloaded":2\b/.test(log)).length, 1);
  assert(ended.some(({ log }) => /waiting for another process that fetches the same/.test(log)));
  await isWhole();
});

test('one that is killed in the midst of it leaves its part to the next', async () => {
  const child = fetcher();
  await partialOf(4 * PART);
  child.kill('SIGKILL');
  await once(child, 'close');
  const fetched = await fetchTo(request(), undefined, QUICK);
  assert(fetched.some(({ written }) => written));
  assert.match(gets.filter(({ key }) => key === 'faces/train.rec').at(-1)!.range, /^bytes=[1-9]\d*-$/);
  await isWhole();
});

test('one that is only frozen finds the work done when it wakes, and harms nothing', async () => {
  const child = fetcher();
  await partialOf(4 * PART);
  child.kill('SIGSTOP');
  await fetchTo(request(), undefined, QUICK);
  assert.deepEqual(await readFile(join(to, 'train.rec')), FACES);
  child.kill('SIGCONT');
  const [code] = await once(child, 'close');
  assert.equal(code, 0);
  await isWhole();
});

test('who waits stops when told to', async () => {
  const child = fetcher();
  await partialOf(PART);
  const controller = new AbortController();
  const waiting = fetchTo(request(), controller.signal, { ...QUICK, onWait: () => controller.abort(new Error('told to')) });
  await assert.rejects(waiting, /told to/);
  await once(child, 'close');
  await isWhole();
});

test('a folder that cannot be written is named, with who would write', async () => {
  const store = join(scratch, 'store');
  await mkdir(store);
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'ro', 'tmpfs', store]);
  try {
    await assert.rejects(fetchTo(request()), (error: unknown) => {
      assert(error instanceof FacetrainError);
      assert.deepEqual([error.code, error.allowed], ['StorageFailed', `a place that can be read and written by user ${process.getuid!()}, group ${process.getgid!()}`]);
      assert(error.subject.startsWith(store), error.subject);
      return true;
    });
  } finally {
    execFileSync('umount', [store]);
  }
});
