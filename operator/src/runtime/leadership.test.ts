import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Leadership, type Moment } from './leadership.ts';

const START: Moment = { monotonic: 5_000, wall: 1_000_000 };

/** A leadership that was renewed at START with a deadline of 10 s, at a time that is set. */
function renewed() {
  let now = START;
  const leadership = Leadership.byElection(10, () => now);
  assert.throws(() => leadership.check(), /has not been elected/);
  leadership.renewed(leadership.now);
  return {
    leadership,
    at: (monotonic: number, wall: number) => (now = { monotonic: 5_000 + monotonic, wall: 1_000_000 + wall }),
  };
}

const times: Record<string, { monotonic: number; wall: number; want: 'leads' | 'lost' }> = {
  'just before the deadline': { monotonic: 9_999, wall: 9_999, want: 'leads' },
  'at the deadline': { monotonic: 10_000, wall: 10_000, want: 'lost' },
  'after a suspension in which the monotonic clock stood still': { monotonic: 1, wall: 60_000, want: 'lost' },
  'after the wall clock was set back': { monotonic: 9_000, wall: -3_600_000, want: 'leads' },
  'at the deadline, after the wall clock was set back': { monotonic: 10_000, wall: -3_600_000, want: 'lost' },
};
for (const [name, { monotonic, wall, want }] of Object.entries(times))
  test(`${name}: ${want}`, () => {
    const { leadership, at } = renewed();
    at(monotonic, wall);
    if (want === 'leads') return leadership.check();
    assert.throws(() => leadership.check(), { name: 'LeadershipLost', message: /not renewed for 10 s/ });
    assert(leadership.signal.aborted);
  });

test('a renewal counts from its beginning, and none brings back a leadership that is over', () => {
  const { leadership, at } = renewed();
  const begun = at(8_000, 8_000);
  at(9_500, 9_500);
  leadership.renewed(begun);
  at(17_999, 17_999);
  leadership.check();
  leadership.end('the lease was taken by another');
  leadership.renewed(leadership.now);
  assert.throws(() => leadership.check(), /taken by another/);
});

test('without election a replica always leads', () => Leadership.withoutElection().check());
