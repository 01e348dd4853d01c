import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { drawPictures, sampleIndices } from './sample-indices.ts';

test('property: a sample is distinct, in order, spread evenly, and follows from the seed', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 5000 }),
      fc.integer({ min: 0, max: 300 }),
      fc.integer({ min: 0, max: 2 ** 32 - 1 }),
      (images, count, seed) => {
        const sample = sampleIndices(images, count, seed);
        const size = Math.min(images, count);
        assert.equal(sample.length, size);
        sample.forEach((picture, i) =>
          assert.ok(picture >= Math.floor((i * images) / size) && picture < Math.floor(((i + 1) * images) / size)),
        );
        assert.deepEqual(sampleIndices(images, count, seed), sample);
      },
    ),
  );
  assert.notDeepEqual(sampleIndices(800, 50, 1), sampleIndices(800, 50, 2));
  // In a dataset of 20 pictures of each of 40 people, in their order, every person is sampled.
  const labels = sampleIndices(800, 40, 1).map((picture) => Math.floor(picture / 20));
  assert.equal(new Set(labels).size, 40);
  // Every place in a stretch is drawn about equally often.
  const places = new Array<number>(10).fill(0);
  for (let seed = 0; seed < 100; seed++)
    sampleIndices(1000, 100, seed).forEach((picture) => (places[picture % 10]! += 1));
  for (const count of places) assert.ok(Math.abs(count - 1000) < 150, String(places));
});

test('property: pictures are held out that do not calibrate, if there are two', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 700 }), fc.integer({ min: 1, max: 700 }), fc.nat(), (images, count, seed) => {
      const { calibration, heldOut } = drawPictures(images, count, seed, true);
      const all = [...calibration, ...heldOut];
      assert.equal(new Set(all).size, all.length);
      assert.ok(all.every((index) => Number.isInteger(index) && index >= 0 && index < images));
      assert.deepEqual(
        heldOut,
        heldOut.toSorted((a, b) => a - b),
      );
      assert.ok(calibration.length >= 1);
      if (images >= 2) assert.ok(heldOut.length >= Math.min(50, Math.ceil(images / 5)));
      // Where there are enough, holding out changes nothing else.
      if (images >= count + 500) assert.deepEqual(calibration, sampleIndices(images, count, seed));
    }),
  );
  assert.deepEqual(drawPictures(800, 50, 1, false), { calibration: sampleIndices(800, 50, 1), heldOut: [] });
  const { calibration, heldOut } = drawPictures(8, 50, 1, true);
  assert.deepEqual([calibration.length, heldOut.length], [6, 2]);
});
