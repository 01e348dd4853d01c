import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import { exampleFaces } from '../../hack/lib/paths.mjs';
import { decodePictures, inspectDataset, readPictures } from './data.ts';

test('inspecting the dataset in examples/', async () => {
  const progress: { done: number; total: number }[] = [];
  const info = await inspectDataset(exampleFaces, {
    decode: 'all',
    threads: 1,
    onProgress: (now) => progress.push(now),
  });
  assert.deepEqual(info, {
    images: 800,
    identities: 40,
    identitiesSeen: 40,
    labelMin: 0,
    labelMax: 39,
    height: 112,
    width: 112,
    bytes: 3_257_656,
    bad: 0,
    badPictures: [],
    folders: null,
  });
  assert.deepEqual(progress.at(-1), { done: 800, total: 800 });
});

test('pixels are those of independent decoders', async () => {
  const { data, ...shape } = await readPictures(exampleFaces, [0, 799], { channelOrder: 'rgb' });
  assert.deepEqual(shape, { count: 2, height: 112, width: 112, channelOrder: 'rgb', bad: [] });
  // The digest is that of Pillow 13's pixels. `expected`, at (y, x), is jpeg-js 0.4's, which is not built on libjpeg:
  // its inverse DCT and its chroma upsampling differ, so values may differ by 3.
  assert.equal(
    createHash('sha256')
      .update(data.subarray(0, 112 * 112 * 3))
      .digest('hex'),
    '9152f18311b2a197dfbb1a5624529f0ac88daa89b1a9f046c855904b200f9d50',
  );
  const expected: [y: number, x: number, ...rgb: number[]][] = [
    [0, 0, 114, 116, 101],
    [56, 56, 241, 190, 159],
    [40, 30, 171, 108, 77],
    [111, 111, 153, 138, 155],
    [80, 70, 203, 142, 110],
    [20, 100, 88, 91, 84],
  ];
  for (const [y, x, ...rgb] of expected)
    rgb.forEach((value, c) => assert.ok(Math.abs(data[(y * 112 + x) * 3 + c]! - value) <= 3, `${y}, ${x}`));
});

test('bgr is rgb with channels reversed, and pictures come in the order of the indices', async () => {
  const rgb = await readPictures(exampleFaces, [5, 3], { channelOrder: 'rgb' });
  const bgr = await readPictures(exampleFaces, [3, 5], { channelOrder: 'bgr' });
  const size = 112 * 112 * 3;
  const turned = rgb.data.map((_, i) => rgb.data[i - (i % 3) + 2 - (i % 3)]!);
  assert.deepEqual(bgr.data.subarray(0, size), turned.subarray(size));
  assert.deepEqual(bgr.data.subarray(size), turned.subarray(0, size));
  assert.equal((await readPictures(exampleFaces, [], { channelOrder: 'rgb' })).data.length, 0);
});

test('indices outside the dataset are refused', async () => {
  for (const index of [800, -1, 0.5, NaN, 2 ** 60]) {
    await assert.rejects(
      readPictures(exampleFaces, [0, index], { channelOrder: 'rgb' }),
      (error) =>
        error instanceof FacetrainError &&
        error.code === 'InvalidArgument' &&
        error.found === `there is no picture ${index}`,
    );
  }
});

test('an invalid JPEG is reported with the code and the name that the caller gave', async () => {
  // 1 x 1 pixels.
  const intact = Buffer.from(
    'Qk06AAAAAAAAADYAAAAoAAAAAQAAAAEAAAABABgAAAAAAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAD/AA==',
    'base64',
  );
  const options = {
    channelOrder: 'rgb',
    height: 1,
    width: 1,
    subjects: ['intact', 'set.bin, picture 40', 'another'],
    code: 'InvalidVerificationSet',
  } as const;
  await assert.rejects(
    decodePictures([intact, Uint8Array.of(0xff, 0xd8), new Uint8Array(0)], options),
    (error) =>
      error instanceof FacetrainError &&
      error.code === 'InvalidVerificationSet' &&
      error.subject === 'set.bin, picture 40',
  );
});

test('a cancelled call rejects with the reason, and the next one works', async () => {
  const controller = new AbortController();
  const reason = new Error('enough');
  const calls = [
    inspectDataset(exampleFaces, { decode: 'all', signal: controller.signal }),
    readPictures(
      exampleFaces,
      Array.from({ length: 800 }, (_, i) => i),
      { channelOrder: 'rgb', signal: controller.signal },
    ),
  ];
  controller.abort(reason);
  await Promise.all(calls.map((call) => assert.rejects(call, (error) => error === reason)));
  assert.equal((await inspectDataset(exampleFaces, { decode: 'none' })).images, 800);
});
