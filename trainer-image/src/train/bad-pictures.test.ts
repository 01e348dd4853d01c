/** Bad pictures of several ranks, without a training: ranks exchange what they found by a gathering in this process. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import type { TrainingSessionContract, UnusablePicture } from '@facetrain/native';
import { pino } from 'pino';
import { BadPictures } from './bad-pictures.ts';

const log = pino({ level: 'silent' });
const bad = (picture: number): UnusablePicture => ({ picture, name: `record ${picture}`, reason: 'is a GIF' });

/** Ranks that gather: each call waits until all ranks have called. */
function gang(size: number): Pick<TrainingSessionContract, 'allGather'>[] {
  let given: Float32Array[] = [];
  let all = Promise.withResolvers<Float32Array[]>();
  return Array.from({ length: size }, (_, rank) => ({
    allGather: (values: Float32Array) => {
      const { promise, resolve } = all;
      given[rank] = values;
      if (given.filter(Boolean).length === size) {
        resolve(given);
        given = [];
        all = Promise.withResolvers();
      }
      return promise;
    },
  }));
}

function ranks(share: number, found: number[][], images = 100): BadPictures[] {
  return found.map((pictures, rank) => {
    const dataset = { path: '/data', maxBadPictures: share };
    return new BadPictures(dataset, { images, badPictures: pictures.map(bad) }, { rank }, { log });
  });
}

test('every rank learns what the others found, each picture once and in order', async () => {
  const [first, second] = ranks(0.1, [
    [7, 3],
    [3, 1],
  ]);
  const [one, other] = gang(2);
  await Promise.all([first!.exchange(one!), second!.exchange(other!)]);
  first!.add([bad(7), bad(5)]);
  await Promise.all([first!.exchange(one!), second!.exchange(other!)]);
  for (const rank of [first!, second!]) {
    assert.equal(rank.report.count, 4);
    assert.deepEqual(
      rank.report.listed.map(({ name }) => name),
      ['record 1', 'record 3', 'record 5', 'record 7'],
    );
  }
});

test('ranks that are within the budget alone end together when they are not', async () => {
  const both = ranks(0.02, [
    [1, 2],
    [3, 4],
  ]);
  const sessions = gang(2);
  const ends = await Promise.allSettled(both.map((rank, i) => rank.exchange(sessions[i]!)));
  for (const end of ends) {
    assert.equal(end.status, 'rejected');
    const { reason } = end as PromiseRejectedResult;
    assert.ok(reason instanceof FacetrainError);
    assert.equal(reason.code, 'InvalidDataset');
    assert.match(reason.message, /^\/data: 4 bad pictures \(record 1: is a GIF; .*; …\); at most 2 of 100/);
  }
});

test('more than fit in one exchange are counted at the next, and the report lists the first', async () => {
  const [rank] = ranks(0.5, [Array.from({ length: 100 }, (_, i) => i)], 5000);
  rank!.add(Array.from({ length: 1500 }, (_, i) => bad(i)));
  const [session] = gang(1);
  await rank!.exchange(session!);
  await rank!.exchange(session!);
  assert.equal(rank!.report.count, 1500);
  assert.equal(rank!.report.listed.length, 1000);
});
