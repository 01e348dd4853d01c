import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import type { Embedder, Pictures } from '@facetrain/native';
import { exampleFaces } from '../../../hack/lib/paths.mjs';
import { evaluateSet, partOf } from './evaluate-set.ts';
import { readVerificationSet } from './verification-set.ts';

const whole = await readVerificationSet(join(exampleFaces, 'lfw-small.bin'));
const set = { ...whole, encoded: whole.encoded.slice(0, 300), same: whole.same.slice(0, 150) };
const options = { input: { height: 112, width: 112 }, channelOrder: 'rgb', flip: true } as const;

/** Embeds a picture as its first pixel. */
class FirstPixel implements Embedder {
  readonly dim = 3;
  readonly flips: (boolean | undefined)[] = [];
  readonly counts: number[] = [];
  async embed(pictures: Pictures, { flip }: { flip?: boolean } = {}): Promise<Float32Array> {
    this.flips.push(flip);
    this.counts.push(pictures.count);
    const size = pictures.height * pictures.width * 3;
    return Float32Array.from(
      { length: pictures.count * 3 },
      (_, i) => pictures.data[Math.floor(i / 3) * size + (i % 3)]!,
    );
  }
  async close(): Promise<void> {}
}

test('parts in rank order make up the whole, for any number of ranks', async () => {
  const embedder = new FirstPixel();
  const seen: [number, number][] = [];
  const all = await evaluateSet(embedder, set, { ...options, onBatch: (done, total) => seen.push([done, total]) });
  assert.equal(all.length, 300 * 3);
  assert.deepEqual(seen, [
    [128, 300],
    [256, 300],
    [300, 300],
  ]);
  assert.deepEqual(embedder.counts, [128, 128, 44]);
  assert.deepEqual(new Set(embedder.flips), new Set([true]));
  assert.ok(new Set(all).size > 100, 'the pictures differ');
  for (const size of [2, 7]) {
    const parts: number[] = [];
    for (let rank = 0; rank < size; rank++)
      parts.push(...(await evaluateSet(new FirstPixel(), set, { ...options, part: { rank, size } })));
    assert.deepEqual(Float32Array.from(parts), all);
  }
});

test('an embedder that wants larger batches gets them, and the embeddings are the same', async () => {
  class Large extends FirstPixel {
    readonly batch = 256;
  }
  const embedder = new Large();
  assert.deepEqual(await evaluateSet(embedder, set, options), await evaluateSet(new FirstPixel(), set, options));
  assert.deepEqual(embedder.counts, [256, 44]);
});

test('parts are consecutive and of about equal size', () => {
  for (const [pictures, size] of [
    [1200, 7],
    [3, 5],
    [0, 2],
    [14_000, 1],
  ] as const) {
    let next = 0;
    const counts = Array.from({ length: size }, (_, rank) => {
      const { first, count } = partOf(pictures, { rank, size });
      assert.equal(first, next);
      next += count;
      return count;
    });
    assert.equal(next, pictures);
    assert.ok(Math.max(...counts) - Math.min(...counts) <= 1);
  }
});

test('bgr is rgb in reverse order', async () => {
  const rgb = await evaluateSet(new FirstPixel(), set, options);
  const bgr = await evaluateSet(new FirstPixel(), set, { ...options, channelOrder: 'bgr' });
  assert.deepEqual(
    bgr,
    rgb.map((_, i) => rgb[i - (i % 3) + 2 - (i % 3)]!),
  );
});

test('a file that is no picture is named by its index in the set, in any part', async () => {
  const broken = { ...set, encoded: set.encoded.with(201, Uint8Array.of(1, 2, 3)) };
  const expected = (error: unknown) =>
    error instanceof FacetrainError &&
    error.code === 'InvalidVerificationSet' &&
    error.message.includes('lfw-small.bin, picture 201: is no picture of a kind that is read');
  await assert.rejects(evaluateSet(new FirstPixel(), broken, options), expected);
  await assert.rejects(evaluateSet(new FirstPixel(), broken, { ...options, part: { rank: 1, size: 2 } }), expected);
  await evaluateSet(new FirstPixel(), broken, { ...options, part: { rank: 0, size: 2 } });
  await assert.rejects(
    evaluateSet(new FirstPixel(), set, { ...options, input: { height: 96, width: 112 } }),
    /picture 0: has 112 x 112 pixels \(height x width\); pictures have 96 x 112/,
  );
});

test('an abort ends it with its reason', async () => {
  const controller = new AbortController();
  const reason = new Error('enough');
  const embedder = new FirstPixel();
  await assert.rejects(
    evaluateSet(embedder, set, { ...options, signal: controller.signal, onBatch: () => controller.abort(reason) }),
    (error) => error === reason,
  );
  assert.equal(embedder.counts.length, 1);
});
