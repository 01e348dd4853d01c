/** Which pictures the report shows. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bitmapUri } from '../report/bitmap.ts';
import { SHOWN_PICTURES, worstPictures } from './worst-pictures.ts';

test('the worst come first, a mirror image counts with its picture, and one of several pairs is there once', () => {
  const set = {
    set: 'lfw',
    pictures: 4,
    // The last is the first again, as in sets that use a picture for several pairs.
    cosines: Float64Array.of(0.9, 0.99, 0.98, 0.9, 0.95, 0.8, 0.97, 0.95),
  };
  const others = { set: null, pictures: 2, cosines: Float64Array.of(0.85, 0.96), numbers: [17, 30] };
  assert.deepEqual(worstPictures([set, others]), [
    { set: 'lfw', picture: 1, mirrored: true, cosine: 0.8 },
    { set: null, picture: 17, mirrored: false, cosine: 0.85 },
    { set: 'lfw', picture: 0, mirrored: false, cosine: 0.9 },
    { set: null, picture: 30, mirrored: false, cosine: 0.96 },
    { set: 'lfw', picture: 2, mirrored: true, cosine: 0.97 },
  ]);
  const many = { set: null, pictures: 100, cosines: Float64Array.from({ length: 100 }, (_, i) => 1 - i / 100) };
  assert.equal(worstPictures([many]).length, SHOWN_PICTURES);
});

test('a bitmap has the colors of the picture, from the top, and large pictures become small', () => {
  const bytes = (uri: string) => Buffer.from(uri.replace('data:image/bmp;base64,', ''), 'base64');
  // Two rows of three pixels: red, green, blue; black, white, gray.
  const rgb = Uint8Array.of(255, 0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 128, 128, 128);
  const file = bytes(bitmapUri(rgb, { height: 2, width: 3, channelOrder: 'rgb' }));
  assert.deepEqual([file.readInt32LE(18), file.readInt32LE(22), file.readUInt32LE(2)], [3, -2, file.length]);
  const at = file.readUInt32LE(10);
  assert.deepEqual([...file.subarray(at, at + 12)], [0, 0, 255, 0, 255, 0, 255, 0, 0, 0, 0, 0]);
  assert.deepEqual([...file.subarray(at + 12, at + 21)], [0, 0, 0, 255, 255, 255, 128, 128, 128]);
  const bgr = rgb.map((_, i) => rgb[i - (i % 3) + 2 - (i % 3)]!);
  assert.deepEqual(bytes(bitmapUri(bgr, { height: 2, width: 3, channelOrder: 'bgr' })), file);

  const large = new Uint8Array(600 * 300 * 3).fill(77);
  const small = bytes(bitmapUri(large, { height: 600, width: 300, channelOrder: 'rgb' }));
  assert.deepEqual([small.readInt32LE(18), small.readInt32LE(22)], [50, -100]);
  assert.equal(small[60], 77);
});
