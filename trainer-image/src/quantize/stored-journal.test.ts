/** The copy of a search's journal in an object store (versitygw): what a quantizer in a new pod goes on with. */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, type TestContext, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { SEARCH_JOURNAL } from '@facetrain/api';
import { pino } from 'pino';
import { Fence } from '../storage/fence.ts';
import { ObjectStore } from '../storage/object-store.ts';
import { AWS_ENVIRONMENT, type S3Server, startS3Server } from '../testing/s3-server.ts';
import { SearchJournal } from './search-journal.ts';
import { StoredJournal } from './stored-journal.ts';

/** Longer than a test takes. */
const NEVER = 3_600_000;

let server: S3Server;
let warnings: string[];
let names = 0;
/** Of the test. */
let uri: string;
const log = pino(
  { level: 'warn' },
  { write: (line: string) => warnings.push((JSON.parse(line) as { msg: string }).msg) },
);

before(async () => {
  Object.assign(process.env, AWS_ENVIRONMENT);
  server = await startS3Server('models');
});
after(() => server?.stop());
beforeEach(() => {
  warnings = [];
  uri = `s3://models/${++names}`;
});

/** A quantizer in a pod of its own: with an empty folder. */
async function quantizer(t: TestContext, { key = 'key', interval = NEVER } = {}) {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-journal-'));
  t.after(() => rm(folder, { recursive: true }));
  const fence = await Fence.claim(folder, { name: 'job', uid: 'uid', attempt: 0, start: randomUUID() });
  const stored = await StoredJournal.open(server.address(uri), log, { interval });
  t.after(() => stored?.[Symbol.dispose]());
  const journal = await SearchJournal.open(fence, key, log, stored);
  return {
    journal,
    found: journal.decided.map((numbers) => Array.from(numbers)),
    decide: (...numbers: number[]) => journal.add([Float64Array.from(numbers)]),
  };
}

async function inStore(): Promise<string | undefined> {
  const store = new ObjectStore({ ...server.address(uri), credentials: null });
  try {
    const object = await store.get(SEARCH_JOURNAL);
    return object && new TextDecoder().decode(object.bytes);
  } finally {
    store.close();
  }
}

async function untilStored(text: string): Promise<void> {
  const end = performance.now() + 60_000;
  while (!(await inStore())?.includes(text)) {
    assert(performance.now() < end, `${text} was not written`);
    await delay(5);
  }
}

test('a quantizer that was stopped left all its decisions to the next, and the last one leaves nothing', async (t) => {
  const first = await quantizer(t);
  first.decide(1, 2);
  first.decide(3);
  await first.journal.close();
  const second = await quantizer(t);
  assert.deepEqual(second.found, [[1, 2], [3]]);
  second.decide(4);
  await second.journal.close();
  const third = await quantizer(t);
  assert.deepEqual(third.found, [[1, 2], [3], [4]]);
  await third.journal.close();
  await third.journal.remove();
  assert.equal(await inStore(), undefined);
  assert.deepEqual(warnings, []);
});

test('one that was killed left what it had written in between', async (t) => {
  const killed = await quantizer(t, { interval: 1 });
  killed.decide(1);
  killed.decide(2);
  await untilStored('[2]');
  const next = await quantizer(t);
  assert.deepEqual(next.found.slice(0, 2), [[1], [2]]);
});

test('decisions of another search are replaced', async (t) => {
  const other = await quantizer(t, { key: 'other' });
  other.decide(1);
  await other.journal.close();
  const next = await quantizer(t);
  assert.deepEqual(next.found, []);
  next.decide(2);
  await next.journal.close();
  assert.deepEqual((await quantizer(t)).found, [[2]]);
});

test('an older quantizer that wakes changes nothing, and leaves nothing behind', async (t) => {
  const older = await quantizer(t);
  older.decide(1);
  const newer = await quantizer(t);
  newer.decide(1);
  newer.decide(2);
  await newer.journal.close();
  const written = await inStore();
  older.decide(3);
  await older.journal.close();
  assert.match(
    warnings.join('\n'),
    /^the search is kept in this pod only: s3:\/\/models\/\d+\/search\.journal has another/,
  );
  await older.journal.remove();
  assert.equal(await inStore(), written);

  // Nor one that wakes when the newer has ended.
  const late = await quantizer(t);
  await newer.journal.remove();
  late.decide(4);
  await late.journal.close();
  assert.equal(await inStore(), undefined);
});

for (const [name, answer, warns] of [
  ['is this process’ own', async () => undefined, false],
  [
    'may be followed by another',
    () => {
      throw new Error('a broken connection');
    },
    true,
  ],
] as const)
  test(`a write of which the answer was lost ${name}`, async (t) => {
    const first = await quantizer(t, { interval: 1 });
    const { put: original } = ObjectStore.prototype;
    const put = t.mock.method(ObjectStore.prototype, 'put');
    put.mock.mockImplementationOnce(async function (this: ObjectStore, ...args: Parameters<ObjectStore['put']>) {
      await original.apply(this, args);
      return answer();
    });
    first.decide(1);
    await untilStored('[1]');
    first.decide(2);
    await first.journal.close();
    assert.deepEqual((await quantizer(t)).found, [[1], [2]]);
    assert.equal(warnings.length, warns ? 1 : 0, warnings.join('\n'));
    await first.journal.remove();
    assert.equal(await inStore(), undefined);
  });

test('a store that cannot be read is a warning, and the search goes on', async (t) => {
  uri = 's3://nowhere/x';
  const { journal, found } = await quantizer(t);
  journal.add([Float64Array.of(1)]);
  await journal.close();
  await journal.remove();
  assert.deepEqual(found, []);
  assert.match(warnings.join('\n'), /^the search is kept in this pod only: .*bucket "nowhere" does not exist/);
});
