import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Pictures } from '@facetrain/native';
import { resized } from './resize.ts';

/** Two gray pictures of these rows, the second 100 brighter. */
function pictures(rows: number[][]): Pictures {
  const bytes = [0, 100].flatMap((more) => rows.flat().flatMap((value) => [value + more, value + more, value + more]));
  const [height, width] = [rows.length, rows[0]!.length];
  return { count: 2, height, width, channelOrder: 'rgb', data: Uint8Array.from(bytes) };
}

test('pictures are stretched linearly between the centres of pixels', () => {
  const { data, height, width } = resized(
    pictures([
      [0, 40],
      [80, 120],
    ]),
    { height: 1, width: 4 },
  );
  assert.deepEqual([height, width], [1, 4]);
  const gray = data.filter((_, i) => i % 3 === 0);
  assert.deepEqual([...gray], [40, 50, 70, 80, 140, 150, 170, 180]);
  assert.ok(data.every((value, i) => value === data[i - (i % 3)]));
});

test('pictures of the size are what they were', () => {
  const given = pictures([[1, 2, 3]]);
  assert.equal(resized(given, { height: 1, width: 3 }), given);
});
