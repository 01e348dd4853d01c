import assert from 'node:assert/strict';
import { test } from 'node:test';
import { counted } from './counted.ts';

test('one thing and others', () => {
  const cases: Record<string, string> = {
    picture: '1 picture, 2 pictures',
    class: '1 class, 2 classes',
    identity: '1 identity, 2 identities',
    day: '1 day, 2 days',
    batch: '1 batch, 2 batches',
    axis: '1 axis, 2 axes',
    'more pod': '1 more pod, 2 more pods',
  };
  for (const [noun, expected] of Object.entries(cases))
    assert.equal([1, 2].map((count) => counted(count, noun)).join(', '), expected);
  assert.equal(counted(0, 'row'), '0 rows');
  assert.equal(
    counted(1234, 'row', (count) => count.toLocaleString('en')),
    '1,234 rows',
  );
});
