import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ExitCode, FacetrainError } from '@facetrain/api';
import { FirstContact, withRetries } from './retries.ts';

const failure = (exitCode: ExitCode) =>
  new FacetrainError({
    code: 'StorageFailed',
    subject: 's3://faces',
    found: 'nothing',
    allowed: 'something',
    exitCode,
  });

/** Work that throws each of the errors, then succeeds. */
function failing(...errors: unknown[]) {
  const waits: number[] = [];
  const work = async () => {
    if (errors.length > 0) throw errors.shift();
    return 'done';
  };
  return {
    work,
    waits,
    onRetry: (_: FacetrainError, milliseconds: number) => void waits.push(milliseconds),
  };
}

const { signal } = new AbortController();

test('a transient failure is tried again, after waits that double', async () => {
  const { work, waits, onRetry } = failing(
    failure(ExitCode.failure),
    failure(ExitCode.failure),
    failure(ExitCode.failure),
  );
  assert.equal(await withRetries(work, { signal, onRetry, firstWait: 1 }), 'done');
  assert.deepEqual(waits, [1, 2, 4]);
});

test('any other failure is thrown at once', async () => {
  for (const error of [failure(ExitCode.refused), new Error('a defect')]) {
    const { work, waits, onRetry } = failing(error);
    await assert.rejects(withRetries(work, { signal, onRetry, firstWait: 1 }), error);
    assert.deepEqual(waits, []);
  }
});

test('a store may be away for a quarter of an hour', async (t) => {
  let minutes = 0;
  t.mock.method(performance, 'now', () => minutes * 60_000);
  const lasting = (count: number) => {
    minutes = 0;
    const { work } = failing(...Array.from({ length: count }, () => failure(ExitCode.failure)));
    return withRetries(work, { signal, onRetry: () => void minutes++, firstWait: 0 });
  };
  assert.equal(await lasting(14), 'done');
  await assert.rejects(lasting(17), { code: 'StorageFailed' });
});

test('a server that was never reached is given up after five minutes, one that has answered is not', async (t) => {
  let minutes = 0;
  t.mock.method(performance, 'now', () => minutes * 60_000);
  const unreached = (code: string, exitCode: ExitCode = ExitCode.failure) =>
    Object.assign(failure(exitCode), { cause: Object.assign(new Error(code), { code }) });
  const refused = (count: number) => Array.from({ length: count }, () => unreached('ECONNREFUSED'));
  const fetches = (errors: unknown[], contact = new FirstContact()) => {
    minutes = 0;
    const { giveUpAfter, mayPass } = contact;
    return withRetries(failing(...errors).work, {
      signal,
      onRetry: () => void minutes++,
      firstWait: 0,
      giveUpAfter,
      mayPass,
    });
  };
  // As s3Error reports it: refused elsewhere.
  const unresolved = unreached('ENOTFOUND', ExitCode.refused);
  assert.equal(await fetches([unresolved, ...refused(4)]), 'done');
  await assert.rejects(fetches([unresolved, unresolved, unresolved]), unresolved);
  // A load balancer answers, as the SDK reports it.
  const cause = Object.assign(new Error('UnknownError'), { name: 'NotFound', $metadata: { httpStatusCode: 404 } });
  const astray = Object.assign(failure(ExitCode.refused), { cause });
  assert.equal(await fetches([astray, ...refused(4)]), 'done');
  await assert.rejects(fetches([astray, astray, astray]), astray);
  await assert.rejects(fetches(refused(7)), { code: 'StorageFailed' });
  // It broke a connection, so it is there; so is one that a request before was answered by.
  assert.equal(await fetches([unreached('ECONNRESET'), ...refused(13)]), 'done');
  const contact = new FirstContact();
  contact.answered();
  assert.equal(await fetches(refused(14), contact), 'done');
});

test('retries end when the time is up', async () => {
  const errors = Array.from({ length: 100 }, () => failure(ExitCode.failure));
  const { work, waits, onRetry } = failing(...errors);
  await assert.rejects(withRetries(work, { signal, onRetry, firstWait: 1, giveUpAfter: 20 }), {
    code: 'StorageFailed',
  });
  assert(waits.length >= 1 && waits.reduce((sum, wait) => sum + wait, 0) <= 20, waits.join());
});

test('an abort ends the wait', async () => {
  const stop = new AbortController();
  const { work } = failing(failure(ExitCode.failure));
  await assert.rejects(
    withRetries(work, { signal: stop.signal, onRetry: () => stop.abort(), firstWait: 60_000, giveUpAfter: 120_000 }),
    { name: 'AbortError' },
  );
});

test('what else may pass is tried again, too', async () => {
  const refused = failure(ExitCode.refused);
  const { work, waits, onRetry } = failing(refused, refused, new Error('a defect'));
  const mayPass = (error: FacetrainError) => error === refused;
  await assert.rejects(withRetries(work, { signal, onRetry, mayPass, firstWait: 1 }), /a defect/);
  assert.deepEqual(waits, [1, 2]);
});
