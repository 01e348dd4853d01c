import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Restarts } from '@facetrain/api';
import type { Failure } from './failure.ts';
import { backoffEnd, decideRestart } from './restarts.ts';
import { after, at, makeJob } from './testing/builders.ts';

const FAILURE: Failure = {
  reason: 'ProcessFailed',
  message: 'rank 1 left',
  disruption: false,
  ruleReasons: [],
  exitCode: 1,
  rank: 1,
  node: 'n',
};
const policy = (fields: object) => makeJob().failurePolicy(fields).parse().failurePolicy;

test('a counted restart is recorded with its cause', () => {
  const verdict = decideRestart(FAILURE, policy({}), undefined, after(100));
  assert.deepEqual(verdict, {
    action: 'restart',
    restarts: {
      count: 1,
      countedTimes: [at(100)],
      disruptions: 0,
      lastReason: 'ProcessFailed',
      lastMessage: 'rank 1 left',
      lastExitCode: 1,
      lastRank: 1,
      lastNode: 'n',
      lastTime: at(100),
    },
  });
});

describe('how many restarts there may be', () => {
  const cases: Record<
    string,
    { countedTimes: number[]; failure?: Partial<Failure>; policy: object; want: 'restart' | 'fail' }
  > = {
    'none with maxRestarts 0': { countedTimes: [], policy: { maxRestarts: 0 }, want: 'fail' },
    'one more below the maximum': { countedTimes: [10], policy: { maxRestarts: 2 }, want: 'restart' },
    'none more at the maximum': { countedTimes: [10, 20], policy: { maxRestarts: 2 }, want: 'fail' },
    'one more once the window has passed the first': {
      countedTimes: [10, 950],
      policy: { maxRestarts: 2, windowSeconds: 990 },
      want: 'restart',
    },
    'any number of restarts that do not count': {
      countedTimes: [10, 20],
      failure: { disruption: true },
      policy: { maxRestarts: 2 },
      want: 'restart',
    },
  };
  for (const [name, { countedTimes, failure, policy: fields, want }] of Object.entries(cases)) {
    test(name, () => {
      const before: Restarts = { count: 7, countedTimes: countedTimes.map(at), disruptions: 1, lastTime: at(20) };
      const verdict = decideRestart({ ...FAILURE, ...failure }, policy(fields), before, after(1000));
      assert.equal(verdict.action, want);
      if (verdict.action === 'fail')
        assert.match(verdict.message, /^maxRestarts \d+ within \d+ s is used up; at last ProcessFailed: rank 1 left$/);
    });
  }
});

test('the message names the rule that decided', () => {
  const verdict = decideRestart(
    FAILURE,
    policy({ rules: [{ name: 'broken-driver', exitCodes: [1], action: 'FailJob' }] }),
    undefined,
    after(0),
  );
  assert.deepEqual(verdict, { action: 'fail', reason: 'ProcessFailed', message: 'rank 1 left (rule broken-driver)' });
});

describe('how soon the next attempt starts', () => {
  const cases: Record<string, { countedTimes: number[]; last?: number; inRow?: number; want: number | null }> = {
    'at once before any restart': { countedTimes: [], want: null },
    'at once after the first': { countedTimes: [100], last: 100, want: 100 },
    '10 s after the second': { countedTimes: [50, 100], last: 100, want: 110 },
    'twice as long after each further': { countedTimes: [40, 50, 60, 100], last: 100, want: 140 },
    'at most 300 s': { countedTimes: Array.from({ length: 100 }, (_, i) => i + 1), last: 100, want: 400 },
    'at once ten minutes after the one before': { countedTimes: [50, 100, 700], last: 700, want: 700 },
    '10 s after the second since then': { countedTimes: [50, 100, 700, 1299], last: 1299, want: 1309 },
    'at once after one that did not count': { countedTimes: [50, 60], last: 100, want: 100 },
    '5 s after the second that did not count': { countedTimes: [50, 60], last: 100, inRow: 2, want: 105 },
    'twice as long after each further of a row': { countedTimes: [50, 60], last: 100, inRow: 5, want: 140 },
    'at most 300 s after these, too': { countedTimes: [], last: 100, inRow: 5000, want: 400 },
  };
  for (const [name, { countedTimes, last, inRow, want }] of Object.entries(cases)) {
    test(name, () => {
      const restarts =
        last === undefined
          ? undefined
          : {
              count: 1,
              disruptions: 0,
              countedTimes: countedTimes.map(at),
              lastTime: at(last),
              ...(inRow !== undefined && { disruptionsInRow: inRow }),
            };
      assert.deepEqual(backoffEnd(restarts), want === null ? null : after(want));
    });
  }
});

describe('a row of restarts that do not count', () => {
  const before: Restarts = { count: 0, countedTimes: [], disruptions: 4, disruptionsInRow: 4, lastTime: at(0) };
  const rowAfter = (failure: Partial<Failure>, startedAt?: string) => {
    const decision = decideRestart({ ...FAILURE, ...failure }, policy({}), before, after(1000), startedAt);
    return decision.action === 'restart' ? decision.restarts.disruptionsInRow : decision;
  };
  test('grows with each', () => {
    assert.equal(rowAfter({ disruption: true }, at(500)), 5);
    assert.equal(rowAfter({ disruption: true }), 5, 'pods that were never all created');
  });
  test('ends with an attempt of ten minutes', () => assert.equal(rowAfter({ disruption: true }, at(400)), 1));
  test('ends with one that counts', () => assert.equal(rowAfter({}, at(500)), undefined));
});

describe('a loss that is not finite', () => {
  const failure = { ...FAILURE, reason: 'NotANumber', code: 'NotANumber', exitCode: 2, step: 812 };
  const first = decideRestart(failure, policy({}), undefined, after(0));
  assert(first.action === 'restart');
  const { restarts } = first;

  test('is tried once more, and that counts', () =>
    assert.deepEqual([restarts.count, restarts.lastNotANumberStep], [1, 812]));
  test('fails the job at the same step', () => {
    // A drain between the two changes nothing.
    const drained = decideRestart({ ...FAILURE, disruption: true }, policy({}), restarts, after(10));
    assert(drained.action === 'restart');
    assert.deepEqual(decideRestart(failure, policy({}), drained.restarts, after(100)), {
      action: 'fail',
      reason: 'NotANumber',
      message: 'rank 1 left; a restart has come to the same step and value',
    });
  });
  test('is tried once more at another step', () =>
    assert.equal(decideRestart({ ...failure, step: 900 }, policy({}), restarts, after(100)).action, 'restart'));
  test('is tried as often as a rule says', () => {
    const rules = policy({ rules: [{ reasons: ['NotANumber'], action: 'Restart' }] });
    const ruled = { ...failure, ruleReasons: ['NotANumber'] };
    assert.equal(decideRestart(ruled, rules, restarts, after(100)).action, 'restart');
  });
});
