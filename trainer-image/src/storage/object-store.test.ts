/** An object store behind its fence: a real server (versitygw), with faults before it. */
import assert from 'node:assert/strict';
import { createHash, randomBytes, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, utimes, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { ExitCode, type FacetrainError, type ObjectStorePlace } from '@facetrain/api';
import { startFakeGcs } from '../testing/fake-gcs.ts';
import { type Fate, type FaultyS3, startFaultyS3 } from '../testing/s3-faults.ts';
import { AWS_ENVIRONMENT, CREDENTIALS, type S3Server, startS3Server } from '../testing/s3-server.ts';
import { HEAD, ObjectFence } from './object-fence.ts';
import { ObjectStore, type ObjectStoreOptions, PART_BYTES } from './object-store.ts';

Object.assign(process.env, AWS_ENVIRONMENT);
let server: S3Server;
let faulty: FaultyS3;
const stores: ObjectStore[] = [];

before(async () => {
  server = await startS3Server('faces');
  faulty = await startFaultyS3(server.endpoint);
});
after(async () => {
  faulty.close();
  await server.stop();
});
afterEach(() => {
  for (const store of stores.splice(0)) store.close();
  faulty.decide = () => 'pass';
});

/** A prefix of its own, behind the proxy. */
function open(change: Partial<ObjectStorePlace> = {}, options: ObjectStoreOptions = {}): ObjectStore {
  const place = { ...server.address(`s3://faces/${randomUUID()}`), endpoint: faulty.endpoint, credentials: null };
  const store = new ObjectStore({ ...place, ...change }, options);
  stores.push(store);
  return store;
}

const text = (value: string) => new TextEncoder().encode(value);
const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

test('an object of several parts arrives whole, whatever happens to its requests, and is read by ranges', async () => {
  const store = open();
  const bytes = randomBytes(2 * PART_BYTES + 12_345);
  const fates = ['slow', 'cut', 'lost'] as const;
  let count = 0;
  const seen = new Set<string>();
  faulty.decide = ({ method, url }) => {
    seen.add(`${method} ${/[?&](uploads|partNumber|uploadId)=/.exec(url)?.[1] ?? ''}`);
    return ++count % 3 === 0 ? fates[(count / 3) % 3]! : 'pass';
  };
  const writer = store.writer('large');
  for (let start = 0; start < bytes.length; start += 2 ** 20)
    await writer.write(bytes.subarray(start, start + 2 ** 20));
  await writer.finish();
  assert(seen.has('PUT partNumber') && seen.has('POST uploadId'), [...seen].join());
  assert.equal((await store.head('large'))!.bytes, bytes.length);

  const whole = new Uint8Array(bytes.length);
  assert.equal(await store.read('large', whole, 0), bytes.length);
  assert.equal(sha256(whole), sha256(bytes));
  const part = new Uint8Array(1000);
  assert.equal(await store.read('large', part, PART_BYTES - 500), 1000);
  assert(bytes.subarray(PART_BYTES - 500, PART_BYTES + 500).equals(part));
  assert.equal(await store.read('large', part, bytes.length - 10), 10);
  assert.equal(await store.read('large', part, bytes.length + 10), 0);
  assert.equal(await store.read('none', part, 0), 0);
  assert(faulty.faults > 3);
});

test('a request is sent again when the store was too slow for it, or has just changed its credentials', async () => {
  const store = open();
  const asked = new Map<string, number>();
  const once = (fate: Fate) => {
    faulty.decide = ({ method }) => {
      asked.set(fate, (asked.get(fate) ?? 0) + 1);
      return asked.get(fate) === 1 && method !== 'GET' ? fate : 'pass';
    };
  };
  once('tired');
  assert(await store.put('a', text('a')));
  once('forbidden');
  assert.equal((await store.head('a'))?.bytes, 1);
  // PUT, PUT; HEAD, GET for its reason, HEAD.
  assert.deepEqual([...asked.values()], [2, 3]);

  const fresh = open({}, { patienceMs: 3000 });
  faulty.decide = () => 'forbidden';
  await assert.rejects(fresh.head('a'), { code: 'StorageFailed', exitCode: ExitCode.refused });
});

test('an upload is complete although the answer was lost, and the store is away when it is asked', async () => {
  const store = open();
  const fates: Fate[] = [];
  faulty.decide = ({ method, url }) => {
    if (method === 'POST' && url.includes('uploadId')) fates.push(fates.length === 0 ? 'lost' : 'gone');
    else if (method === 'HEAD') fates.push(fates.includes('slow') ? 'pass' : 'slow');
    else return 'pass';
    return fates.at(-1)!;
  };
  const writer = store.writer('large');
  await writer.write(new Uint8Array(PART_BYTES + 1));
  await writer.finish();
  assert.deepEqual(fates, ['lost', 'gone', 'slow', 'gone', 'pass']);
  assert.equal((await store.head('large'))?.bytes, PART_BYTES + 1);
});

test('a claim does not mind that the answer to any of its requests is lost', async () => {
  const owner = { name: 'a', uid: 'a', attempt: 0 };
  for (let lost = 1, requests = lost; lost <= requests; ++lost) {
    const store = open();
    requests = 0;
    faulty.decide = () => (++requests === lost ? 'lost' : 'pass');
    const fence = await ObjectFence.claim(store, { ...owner, start: randomUUID() });
    await fence.check();
  }
});

test('a claim deletes what killed processes left of theirs, and nothing of one that is alive', async () => {
  const prefix = randomUUID();
  const store = open(server.address(`s3://faces/${prefix}`));
  await Promise.all(['dead', 'alive'].map((start) => store.put(`fences/probe-${start}`, text('1'))));
  const written = new Date(Date.now() - 2 * 3_600_000);
  await utimes(join(server.folder, 'faces', prefix, 'fences', 'probe-dead'), written, written);
  await ObjectFence.claim(store, { name: 'j', uid: 'u', attempt: 0, start: randomUUID() });
  assert.deepEqual((await store.list('')).sort(), [HEAD, 'fences/probe-alive'].sort());
});

test('an upload that is not finished leaves no object; it is aborted, and no other', async () => {
  const store = open({}, { patienceMs: 3000 });
  const begun = ['dead', 'alive'].map(async (name) => {
    const writer = store.writer(name);
    await writer.write(new Uint8Array(PART_BYTES + 1));
    return writer;
  });
  const [dead, alive] = await Promise.all(begun);
  assert.deepEqual(await store.list(''), []);
  assert.equal(await store.abortUploads('', (name) => name === 'dead', assert.fail), 1);
  await alive!.finish();
  await assert.rejects(dead!.finish(), { code: 'StorageFailed' });
  assert.deepEqual(await store.list(''), ['alive']);
  await alive!.discard();
  assert.deepEqual(await store.list(''), []);
});

test('work does not wait long for uploads that cannot be aborted, and the log says so', async () => {
  const store = open();
  for (const fate of ['slow', 'denied'] as const) {
    faulty.decide = () => fate;
    const start = performance.now();
    const warnings: string[] = [];
    assert.equal(
      await store.abortUploads(
        '',
        () => true,
        (message) => void warnings.push(message),
      ),
      0,
    );
    assert.match(warnings.join(), fate === 'slow' ? /s3:AbortMultipartUpload .*SlowDown/ : /AccessDenied/);
    assert(performance.now() - start < 60_000);
  }
});

test('a store that hangs is away; a request ends when its patience does, or the store is closed', async () => {
  const store = open({}, { patienceMs: 200 });
  faulty.decide = () => 'cut';
  const error = (await store.put('a', text('a')).catch((found: unknown) => found)) as FacetrainError;
  assert.deepEqual([error.code, error.exitCode], ['StorageFailed', 1]);

  const patient = open();
  const put = patient.put('a', text('a'));
  const rejected = assert.rejects(put, { name: 'AbortError' });
  while (patient.away === null) await new Promise((resolve) => setTimeout(resolve, 20));
  assert.match(patient.away, /s3:.*a/);
  patient.close();
  await rejected;
});

test('a name that does not resolve may be denied for a moment, though it fails the job in the end', async () => {
  const retried: string[] = [];
  const unresolved = (misdirectedMs: number) =>
    open(
      { endpoint: 'http://s3.facetrain.invalid' },
      { misdirectedMs, onRetry: ({ message }) => retried.push(message) },
    ).put('a', text('a'));
  await assert.rejects(unresolved(0), { code: 'StorageFailed', exitCode: 2 });
  assert.equal(retried.length, 0);
  await assert.rejects(unresolved(1_000), { code: 'StorageFailed', exitCode: 2 });
  assert.match(retried[0]!, /host name s3\.facetrain\.invalid does not resolve/);
});

test('what answers in place of the store says nothing of its objects', async () => {
  const owner = { name: 'j', uid: 'u', attempt: 0 };
  for (const fate of ['astray', 'page'] as const) {
    const retried: string[] = [];
    const store = open({}, { onRetry: ({ message }) => retried.push(message) });
    const fence = await ObjectFence.claim(store, { ...owner, start: randomUUID() });
    let left = 0;
    faulty.decide = ({ url }) => (left-- > 0 && !url.includes('list-type') ? fate : 'pass');
    const inPlace = async <T>(requests: number, work: () => Promise<T>): Promise<T> => {
      left = requests;
      return work();
    };
    // The watch of a training, which asks once.
    const error = new Error();
    assert.equal(await inPlace(1, () => fence.explain(error)), error);
    await inPlace(1, () => fence.check());
    await inPlace(1, () => fence.change((head) => head));
    assert(await inPlace(1, () => store.put('a', text('a'))));
    assert.equal((await inPlace(2, () => store.head('a')))?.bytes, 1);
    assert.equal(await inPlace(1, () => store.head('none')), undefined);
    assert(retried.length >= 4);
    for (const message of retried) assert.match(message, /what answers is no S3 server \(HTTP (404|200) without an? /);
  }
  // A wrong address.
  faulty.decide = () => 'astray';
  await assert.rejects(open({}, { misdirectedMs: 0 }).get('a'), { code: 'StorageFailed', exitCode: ExitCode.refused });
});

test('a head that is not there at the first looks is not gone', async () => {
  const store = open();
  const fence = await ObjectFence.claim(store, { name: 'j', uid: 'u', attempt: 0, start: randomUUID() });
  let left = 0;
  faulty.decide = ({ method }) => (method === 'GET' && left-- > 0 ? 'unknown' : 'pass');
  const error = new Error();
  for (const work of [() => fence.check(), async () => assert.equal(await fence.explain(error), error)]) {
    left = 3;
    await work();
    assert(left <= 0);
  }
});

test('credentials in files are read again when the Secret changes', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'secret-'));
  const write = async (secret: string) => {
    await writeFile(join(folder, 'AWS_ACCESS_KEY_ID'), `${CREDENTIALS.AWS_ACCESS_KEY_ID}\n`);
    await writeFile(join(folder, 'AWS_SECRET_ACCESS_KEY'), secret);
  };
  try {
    await write(CREDENTIALS.AWS_SECRET_ACCESS_KEY);
    const retried: string[] = [];
    const store = open({ credentials: folder }, { onRetry: ({ message }) => retried.push(message) });
    await store.put('a', text('a'));
    await write('another');
    // The answer to a HEAD has no body: the reason is asked for.
    const requests = [store.put('b', text('b')), store.head('a')];
    while (retried.length < 2) await new Promise((resolve) => setTimeout(resolve, 20));
    for (const message of retried) assert.match(message, /the credentials are wrong \(SignatureDoesNotMatch\)/);
    await write(CREDENTIALS.AWS_SECRET_ACCESS_KEY);
    for (const answer of await Promise.all(requests)) assert(answer);
    // Those that never were right are refused at once.
    await write('another');
    await assert.rejects(open({ credentials: folder }).put('c', text('c')), { code: 'StorageFailed', exitCode: 2 });
  } finally {
    await rm(folder, { recursive: true });
  }
});

test('a store that takes writes whose condition does not hold is refused', async () => {
  const lax = createServer((request, response) => {
    request.resume().on('end', () => response.writeHead(200, { etag: '"1"' }).end());
  }).listen(0, '127.0.0.1');
  await once(lax, 'listening');
  try {
    const store = open({ endpoint: `http://127.0.0.1:${(lax.address() as AddressInfo).port}` });
    await assert.rejects(
      ObjectFence.claim(store, { name: 'j', uid: 'u', attempt: 0, start: randomUUID() }),
      /does not keep to the condition of a write \(PUT with If-None-Match: \*\); a store with conditional writes/,
    );
  } finally {
    lax.close();
  }
});

test('generations fence a store without conditions of ETags, as Google Cloud Storage', async () => {
  const gcs = await startFakeGcs();
  const lax = await startFakeGcs({ isLax: true });
  const owner = { name: 'j', uid: 'u', attempt: 0 };
  try {
    const store = open({ endpoint: gcs.endpoint });
    const claims = await Promise.all(
      Array.from({ length: 4 }, () => ObjectFence.claim(store, { ...owner, start: randomUUID() })),
    );
    const ends = await Promise.allSettled(claims.map((claim) => claim.change((head) => head)));
    const newest = Math.max(...claims.map(({ number }) => number));
    assert.deepEqual(
      claims.flatMap(({ number }, index) => (ends[index]!.status === 'fulfilled' ? [number] : [])),
      [newest],
    );
    // Another process, which has read nothing yet, does not replace what is there.
    assert.equal(
      await open({ endpoint: gcs.endpoint, uri: store.place.uri }).put(HEAD, text(''), { etag: null }),
      undefined,
    );
    assert.deepEqual(await store.list(''), [HEAD]);
    const place = { endpoint: lax.endpoint };
    await assert.rejects(
      ObjectFence.claim(open(place), { ...owner, start: randomUUID() }),
      /does not keep to the cond/,
    );
  } finally {
    gcs.close();
    lax.close();
  }
});

test('checkpoints without their head are not taken for none', async () => {
  const store = open();
  const owner = { name: 'j', uid: 'u', attempt: 0 };
  const fence = await ObjectFence.claim(store, { ...owner, start: randomUUID() });
  await store.put('step-0000000001/x/manifest.json', text('{}'));
  await ObjectFence.claim(store, { ...owner, start: randomUUID() });
  await store.delete([HEAD]);
  await Promise.all([
    assert.rejects(fence.check(), /the head of this prefix is gone/),
    assert.rejects(ObjectFence.claim(store, { ...owner, start: randomUUID() }), { code: 'InvalidCheckpoint' }),
  ]);
});

test('a claim of a newer attempt ends an older one, and an older one cannot claim', async () => {
  const store = open();
  const owner = { name: 'j', uid: 'u', attempt: 1 };
  const first = await ObjectFence.claim(store, { ...owner, start: randomUUID() });
  const second = await ObjectFence.claim(store, { ...owner, start: randomUUID() });
  assert.equal(second.number, first.number + 1);
  const entry = { step: 1, folder: 'f', job: 'j' };
  await assert.rejects(
    first.change(() => ({ checkpoints: [entry], damaged: [] })),
    { code: 'FencedOff' },
  );
  await assert.rejects(ObjectFence.claim(store, { ...owner, attempt: 0, start: randomUUID() }), { code: 'FencedOff' });
  await second.change(() => ({ checkpoints: [entry], damaged: [] }));
  assert.deepEqual((await second.head()).checkpoints, [entry]);
  // Of several at once, the last in the order of the tokens can write, and no other.
  const claims = await Promise.all(
    Array.from({ length: 5 }, () => ObjectFence.claim(store, { ...owner, start: randomUUID() })),
  );
  const ends = await Promise.allSettled(claims.map((claim) => claim.change((head) => head)));
  const winners = claims.filter((_, index) => ends[index]!.status === 'fulfilled');
  assert.deepEqual(
    winners.map(({ number }) => number),
    [Math.max(...claims.map(({ number }) => number))],
  );
});

test('an object is copied within the store, in parts if it is large', async () => {
  const store = open({}, { copyBytes: 5 * 2 ** 20 });
  const bytes = randomBytes(2 * 5 * 2 ** 20 + 1);
  const writer = store.writer('from/ü +1');
  await writer.write(bytes);
  await writer.finish();
  const faults = new Set<string>();
  faulty.decide = ({ method, url }) => {
    const kind = `${method} ${/partNumber|uploads|uploadId/.exec(url)?.[0] ?? ''}`;
    if (faults.has(kind)) return 'pass';
    faults.add(kind);
    return 'slow';
  };
  await store.copy('from/ü +1', 'to/large', bytes.length);
  assert.deepEqual([...faults].sort(), ['POST uploadId', 'POST uploads', 'PUT partNumber']);
  faulty.decide = () => 'pass';
  const found = new Uint8Array(bytes.length);
  assert.equal(await store.read('to/large', found, 0), bytes.length);
  assert.equal(sha256(found), sha256(bytes));

  await store.put('small', text('small'));
  await store.copy('small', 'to/small', 5);
  assert.deepEqual((await store.get('to/small'))!.bytes, text('small'));
  await assert.rejects(store.copy('none', 'to/none', 5), { code: 'StorageFailed' });
});
