import assert from 'node:assert/strict';
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import { MAX_PROGRESS_BYTES, type Progress, progressAtStart } from '@facetrain/api';
import { pino } from 'pino';
import { eventually } from '../testing/eventually.ts';
import { ProgressPoller } from './progress-poller.ts';

const VALID: Progress = {
  ...progressAtStart({ name: 'faces', uid: 'u', attempt: 0 }, 'Training'),
  ...{ step: 4, totalSteps: 10, epoch: 0.5, imagesPerSecond: 10, loss: 1, learningRate: 0.1, etaSeconds: 6 },
  checkpoint: { step: 4, time: '2026-01-01T00:00:00.123Z' },
};

/** A rank 0, and a poller that asks it. */
async function start(
  t: { after(end: () => Promise<void>): void },
  answer: (response: ServerResponse, count: number) => void,
) {
  const seen = { requests: 0, changes: 0, problems: [] as string[] };
  const server = createServer((_request, response) => answer(response, ++seen.requests));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const poller = new ProgressPoller({
    log: pino({ level: 'silent' }),
    everyMilliseconds: 20,
    onChange: () => seen.changes++,
    onInvalid: (key, target, problem) => seen.problems.push(`${key} ${target.attempt}: ${problem}`),
  });
  const stop = new AbortController();
  const running = poller.run(stop.signal);
  t.after(async () => {
    stop.abort();
    await running;
    server.closeAllConnections();
    server.close();
  });
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1/progress`;
  return { poller, seen, url, stop, running };
}

const invalid: Record<string, { answer: string | object; want: RegExp }> = {
  'an answer that is too long': { answer: `"${'x'.repeat(MAX_PROGRESS_BYTES)}"`, want: /more than 65536 bytes/ },
  'no JSON': { answer: '<html>', want: /no JSON/ },
  'deep nesting': { answer: '['.repeat(MAX_PROGRESS_BYTES), want: /no JSON/ },
  'deep nesting that is closed': {
    answer: `${'['.repeat(30_000)}${']'.repeat(30_000)}`,
    want: /the document: .*expected object/,
  },
  'a number that JSON has and JavaScript has not': {
    answer: JSON.stringify(VALID).replace('"loss":1', '"loss":1e400'),
    want: /loss: /,
  },
  'a time that is no date': {
    answer: { ...VALID, checkpoint: { step: 1, time: 'yesterday' } },
    want: /checkpoint\.time: /,
  },
  'a time without seconds': {
    answer: { ...VALID, checkpoint: { step: 1, time: '2026-01-01T00:00Z' } },
    want: /checkpoint\.time: /,
  },
  'a set with a name of ten thousand letters': {
    answer: { ...VALID, evaluations: [{ set: 'x'.repeat(10_000), step: 1, accuracy: 0.5 }] },
    want: /evaluations\.0\.set: /,
  },
  'one set twice': {
    answer: { ...VALID, evaluations: Array(2).fill({ set: 'lfw', step: 1, accuracy: 0.5 }) },
    want: /names of sets must differ/,
  },
  'a negative step': { answer: { ...VALID, step: -1 }, want: /step: / },
  'ten thousand unknown fields': {
    answer: Object.fromEntries(Array.from({ length: 5_000 }, (_, index) => [`field${index}`, 0])),
    want: /./,
  },
};
for (const [name, { answer, want }] of Object.entries(invalid))
  test(`reported once, and not kept: ${name}`, async (t) => {
    const text = typeof answer === 'string' ? answer : JSON.stringify(answer);
    const { poller, seen, url } = await start(t, (response) => response.end(text));
    poller.setTarget('n/faces', { uid: 'u', attempt: 0, url });
    await eventually(() => assert(seen.requests >= 3));
    assert.equal(seen.problems.length, 1);
    assert.match(seen.problems[0]!, /^n\/faces 0: /);
    assert.match(seen.problems[0]!, want);
    assert(seen.problems[0]!.length < 400);
    assert.equal(poller.stateOf('n/faces')?.latest, undefined);
    assert.equal(seen.changes, 0);
  });

test('of many jobs that all answer, none is left out', async (t) => {
  const { poller, url } = await start(t, (response) => response.end(JSON.stringify(VALID)));
  const keys = Array.from({ length: 200 }, (_, index) => `n/job-${index}`);
  for (const key of keys) poller.setTarget(key, { uid: 'u', attempt: 0, url });
  await eventually(async () => {
    const silent = keys.filter((key) => poller.stateOf(key)?.latest === undefined);
    assert.deepEqual(silent, []);
  });
});

test('a redirect is not followed', async (t) => {
  const target = await start(t, (response) => response.end(JSON.stringify(VALID)));
  const { poller, seen, url } = await start(t, (response) => response.writeHead(302, { location: target.url }).end());
  poller.setTarget('n/faces', { uid: 'u', attempt: 0, url });
  await eventually(() => assert(seen.requests >= 2));
  assert.match(seen.problems.join(), /HTTP 302; redirects are not followed/);
  assert.equal(target.seen.requests, 0);
});

test('the next attempt is reported anew, and a valid answer is kept', async (t) => {
  let text = 'x';
  const { poller, seen, url } = await start(t, (response) => response.end(text));
  poller.setTarget('n/faces', { uid: 'u', attempt: 0, url });
  await eventually(() => assert.equal(seen.problems.length, 1));
  poller.setTarget('n/faces', { uid: 'u', attempt: 1, url });
  await eventually(() => assert.equal(seen.problems.length, 2));
  text = JSON.stringify({ ...VALID, job: { ...VALID.job, attempt: 1 } });
  await eventually(() => assert.equal(poller.stateOf('n/faces')?.latest?.step, 4));
  assert.equal(seen.changes, 1);
});

test('an answer of the program before the present one is dropped, also one that is under way', async (t) => {
  const held: ServerResponse[] = [];
  const { poller, url } = await start(t, (response, count) => {
    if (count === 1) response.end(JSON.stringify(VALID));
    else held.push(response);
  });
  poller.setTarget('n/faces', { uid: 'u', attempt: 0, start: 0, url });
  await eventually(() => assert.equal(poller.stateOf('n/faces')?.latest?.step, 4));
  await eventually(() => assert.equal(held.length, 1));
  poller.setTarget('n/faces', { uid: 'u', attempt: 0, start: 1, url });
  assert.equal(poller.stateOf('n/faces')?.latest, undefined);
  held[0]!.end(JSON.stringify(VALID));
  // The next request begins when this answer has been read.
  await eventually(() => assert.equal(held.length, 2));
  assert.equal(poller.stateOf('n/faces')?.latest, undefined);
  held[1]!.end(JSON.stringify({ ...VALID, step: 2 }));
  await eventually(() => assert.equal(poller.stateOf('n/faces')?.latest?.step, 2));
});

test('many ranks that answer byte by byte, or never, do not delay another job, nor the end', async (t) => {
  const slow = await start(t, (response, count) => {
    if (count % 2 === 0) return;
    const timer = setInterval(() => response.write(' '), 100);
    response.on('close', () => clearInterval(timer));
  });
  const { poller, running, stop } = slow;
  for (let index = 0; index < 100; index++)
    poller.setTarget(`n/slow-${index}`, { uid: `u${index}`, attempt: 0, url: slow.url });
  await eventually(() => assert(slow.seen.requests >= 64));
  const healthy = await start(t, (response, count) =>
    response.end(JSON.stringify({ ...VALID, step: count, activity: count })),
  );
  poller.setTarget('n/faces', { uid: 'u', attempt: 0, url: healthy.url });
  await eventually(() => assert((poller.stateOf('n/faces')?.latest?.step ?? 0) >= 10));
  const before = performance.now();
  stop.abort();
  await running;
  assert(performance.now() - before < 1_900, 'requests under way are ended, not waited for');
});
