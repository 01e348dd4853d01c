import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import { drawPairs } from './draw-pairs.ts';

/** 60 persons: person i has 1 + i % 4 pictures. */
const labels = Array.from({ length: 60 }, (_, person) => new Array<number>(1 + (person % 4)).fill(person)).flat();

test('folds are balanced, have no common person, and no pair is there twice', () => {
  const pairs = drawPairs(labels, 160, 3, 'faces');
  assert.equal(pairs.length, 160);
  const seen = new Set<string>();
  const foldOf = new Map<number, number>();
  pairs.forEach(({ pictures: [a, b], same }, i) => {
    const fold = Math.floor(i / 16);
    assert.notEqual(a, b);
    assert.equal(labels[a] === labels[b], same);
    for (const picture of [a, b]) {
      const person = labels[picture]!;
      assert.equal(foldOf.get(person) ?? fold, fold, `person ${person}`);
      foldOf.set(person, fold);
    }
    const key = [a, b].sort((x, y) => x - y).join('-');
    assert.ok(!seen.has(key), key);
    seen.add(key);
  });
  for (let fold = 0; fold < 10; fold++)
    assert.equal(pairs.slice(16 * fold, 16 * fold + 16).filter(({ same }) => same).length, 8);
  assert.deepEqual(drawPairs(labels, 160, 3, 'faces'), pairs);
  assert.notDeepEqual(drawPairs(labels, 160, 4, 'faces'), pairs);
});

test('pictures without a label are not drawn', () => {
  const some = labels.map((label, picture) => (picture % 5 === 0 ? -1 : label));
  for (const { pictures } of drawPairs(some, 80, 0, 'faces')) for (const p of pictures) assert.ok(some[p]! >= 0);
});

test('all pairs that there are can be drawn', () => {
  const twos = Array.from({ length: 40 }, (_, picture) => Math.floor(picture / 2)); // 2 persons a fold, 2 pictures each
  assert.equal(drawPairs(twos, 40, 0, 'faces').length, 40);
  assert.throws(
    () => drawPairs(twos, 60, 0, 'faces'),
    (error) =>
      error instanceof FacetrainError &&
      error.message.startsWith(
        'faces: 20 identities, 20 of them with two pictures or more, give 40 pairs; 60 pairs in',
      ),
  );
  assert.throws(
    () => drawPairs([0, 0, 1], 20, 0, 'faces'),
    /give 0 pairs; .*: 20 identities or more, 10 of them with two/,
  );
  for (const count of [0, 30])
    assert.throws(() => drawPairs(twos, count, 0, 'faces'), /--pairs: \d+; a multiple of 20/);
});
