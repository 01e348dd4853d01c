import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import fc from 'fast-check';
import { holdOut } from './hold-out.ts';

test('property: the parts have no common identity, and the held-out ones have two pictures or more', () => {
  fc.assert(
    fc.property(
      fc.array(fc.nat(4), { minLength: 3, maxLength: 60 }),
      fc.double({ min: 0, max: 0.9, noNaN: true }),
      fc.nat(1000),
      (counts, share, seed) => {
        const present = counts.flatMap((count, label) => (count > 0 ? [label] : []));
        const eligible = present.filter((label) => counts[label]! >= 2);
        const wanted = Math.round(share * present.length);
        fc.pre(share === 0 || (wanted > 0 && wanted <= eligible.length && wanted < present.length));
        const { train, heldOut } = holdOut(counts, share, seed);
        assert.equal(heldOut.length, wanted);
        assert.deepEqual(
          [...train, ...heldOut].sort((a, b) => a - b),
          present,
        );
        assert.ok(heldOut.every((label) => counts[label]! >= 2));
        assert.deepEqual(holdOut(counts, share, seed), { train, heldOut });
      },
    ),
  );
});

test('another seed keeps other identities apart', () => {
  const counts = new Array<number>(100).fill(3);
  assert.equal(holdOut(counts, 10, 1).heldOut.length, 10);
  assert.notDeepEqual(holdOut(counts, 10, 1), holdOut(counts, 10, 2));
});

test('too many, or none of a small dataset', () => {
  for (const holdout of [0.01, 3, 4, 100])
    assert.throws(
      () => holdOut([2, 2, 1], holdout, 0),
      (error) =>
        error instanceof FacetrainError &&
        error.exitCode === 2 &&
        /^--holdout: .* of 3 identities; 0, or at least one identity and at most 2: /.test(error.message),
    );
});
