/** Embeddings that no trained model gives. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { noise } from '../testing/onnx-oracles.ts';
import { checkNotConstant, checkSpread, meanPairCosine } from './check-embeddings.ts';

const DIM = 16;
const input = { name: 'data', channels: 3, height: 8, width: 8 };

/** Embeddings of `count` pictures: what they have in common, and a share of their own. */
function embeddings(count: number, own: number): Float32Array {
  const [common, different] = [noise(DIM, 3), noise(count * DIM, 7)];
  return different.map((value, i) => common[i % DIM]! + own * value);
}

test('the mean cosine is that of all pairs', () => {
  const few = embeddings(5, 1);
  const unit = (at: number) => {
    const row = Array.from(few.subarray(at * DIM, (at + 1) * DIM));
    const length = Math.hypot(...row);
    return row.map((value) => value / length);
  };
  let sum = 0;
  for (let a = 0; a < 5; ++a)
    for (let b = 0; b < a; ++b) sum += unit(a).reduce((total, value, i) => total + value * unit(b)[i]!, 0);
  assert.ok(Math.abs(meanPairCosine(few, DIM) - sum / 10) < 1e-12);
});

describe('all pictures have', () => {
  const cases: Record<string, { count: number; own: number; refused: boolean }> = {
    'embeddings that differ': { count: 20, own: 1, refused: false },
    'much in common': { count: 20, own: 0.3, refused: false },
    'nearly the same embedding': { count: 20, own: 0.01, refused: true },
    'the same embedding': { count: 20, own: 0, refused: true },
    'nearly the same embedding, but are few': { count: 4, own: 0.01, refused: false },
    'the same embedding, and are few': { count: 4, own: 0, refused: true },
    'one embedding, as there is one picture': { count: 1, own: 0, refused: false },
  };
  for (const [name, { count, own, refused }] of Object.entries(cases))
    test(name, async () => {
      const check = checkSpread(embeddings(count, own), DIM, { subject: 'a.onnx', input });
      if (refused) await assert.rejects(check, { code: 'InvalidModel', subject: 'a.onnx' });
      else await check;
    });
});

test('the ranges with which embeddings differ are named, also behind a head', async () => {
  const head = { scale: [2, 2, 2], offset: [1, 1, 1], mean: [127.5, 127.5, 127.5], std: [127.5, 127.5, 127.5] };
  for (const file of [undefined, head]) {
    const tried: { mean: number[] | undefined; std: number[] | undefined }[] = [];
    const check = checkSpread(embeddings(20, 0), DIM, {
      subject: 'a.onnx',
      input: { ...input, ...(file && { file }) },
      embedWith: async ({ mean, std }) => {
        tried.push({ mean, std });
        return tried.length === 3
          ? embeddings(20, 1)
          : tried.length === 2
            ? new Float32Array(20 * DIM)
            : embeddings(20, 0);
      },
    });
    await assert.rejects(check, /mean cosine 1\.0000\); .* with --input-range 0\.\.255 \(model\.input in a manifest\)/);
    // 2 * byte + 1 is (byte + 0.5) / 0.5.
    const [mean, std] = file ? [-0.5, 0.5] : [0, 1];
    assert.deepEqual(tried[2], { mean: [mean, mean, mean], std: [std, std, std] });
  }
});

test('only embeddings that are the same are constant', () => {
  checkNotConstant(embeddings(20, 0.01), DIM, 'step 4');
  assert.throws(() => checkNotConstant(embeddings(20, 0), DIM, 'step 4'), { code: 'NotANumber', subject: 'step 4' });
});
