import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { formatRanks, parseRanks } from './rank-set.ts';

test('ranks are written as a Job writes its completedIndexes', () => {
  assert.equal(formatRanks([]), undefined);
  assert.equal(formatRanks([5, 0, 2, 4, 3]), '0,2-5');
  assert.equal(formatRanks([1, 2]), '1-2');
});

test('what was written is read', () => {
  fc.assert(
    fc.property(fc.uniqueArray(fc.nat({ max: 40 })), (ranks) => {
      assert.deepEqual(
        [...parseRanks(formatRanks(ranks), 41)],
        ranks.toSorted((a, b) => a - b),
      );
    }),
  );
});

test('ranks beyond the gang, and what is no rank, are left out', () => {
  assert.deepEqual([...parseRanks('1,3-900000000000,x,2-,-1', 5)], [1, 3, 4]);
  assert.deepEqual([...parseRanks(undefined, 5)], []);
});
