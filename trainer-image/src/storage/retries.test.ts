import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ExitCode, FacetrainError } from '@facetrain/api';
import { patiently } from './retries.ts';

const failure = (exitCode: ExitCode) =>
  new FacetrainError({
    code: 'StorageFailed',
    subject: 's3://faces',
    found: 'nothing',
    allowed: 'something',
    exitCode,
  });

/** Fails as often as there are errors. */
function failing(...errors: unknown[]) {
  const waits: number[] = [];
  const work = async () => {
    if (errors.length > 0) throw errors.shift();
    return 'done';
  };
  return {
    work,
    waits,
    onWait: (_: FacetrainError, milliseconds: number) => void waits.push(milliseconds),
    left: errors,
  };
}

const { signal } = new AbortController();

test('what may pass is tried again, after waits that double', async () => {
  const { work, waits, onWait } = failing(
    failure(ExitCode.failure),
    failure(ExitCode.failure),
    failure(ExitCode.failure),
  );
  assert.equal(await patiently(work, { signal, onWait, wait: 1 }), 'done');
  assert.deepEqual(waits, [1, 2, 4]);
});

test('what does not pass by itself is told at once', async () => {
  for (const error of [failure(ExitCode.refused), new Error('a defect')]) {
    const { work, waits, onWait } = failing(error);
    await assert.rejects(patiently(work, { signal, onWait, wait: 1 }), error);
    assert.deepEqual(waits, []);
  }
});

test('patience ends', async () => {
  const errors = Array.from({ length: 100 }, () => failure(ExitCode.failure));
  const { work, waits, onWait } = failing(...errors);
  await assert.rejects(patiently(work, { signal, onWait, wait: 1, patience: 20 }), { code: 'StorageFailed' });
  assert(waits.length >= 1 && waits.reduce((sum, wait) => sum + wait, 0) <= 20, waits.join());
});

test('who is told to stop does not wait', async () => {
  const stop = new AbortController();
  const { work } = failing(failure(ExitCode.failure));
  await assert.rejects(
    patiently(work, { signal: stop.signal, onWait: () => stop.abort(), wait: 60_000, patience: 120_000 }),
    { name: 'AbortError' },
  );
});
