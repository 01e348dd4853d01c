import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import { exampleFaces } from '../../../hack/lib/paths.mjs';
import { parseVerificationSet, readVerificationSet } from './verification-set.ts';

/** A pickle of (pictures, answers), each given as pickled values. */
const set = (pictures: string[], answers: string[]) =>
  Buffer.from(`((${pictures.join('')}l(${answers.join('')}lt.`, 'latin1');
const pictures = (count: number) => Array.from({ length: count }, () => 'C\x03jpg');
const answers = (count: number) => Array.from({ length: count }, (_, i) => (i % 2 === 0 ? '\x88' : '\x89'));

test('the example’s set: 600 pairs, half of them of the same person', async () => {
  const { name, encoded, same } = await readVerificationSet(join(exampleFaces, 'lfw-small.bin'));
  assert.equal(name, 'lfw-small');
  assert.equal(encoded.length, 1200);
  assert.equal(same.length, 600);
  assert.equal(same.filter(Boolean).length, 300);
  for (const jpeg of encoded) assert.deepEqual([jpeg[0], jpeg[1], jpeg.at(-2), jpeg.at(-1)], [0xff, 0xd8, 0xff, 0xd9]);
});

test('a set as small as the folds allow', () => {
  const { name, encoded, same } = parseVerificationSet(set(pictures(20), answers(10)), '/some/where/pairs.bin');
  assert.equal(name, 'pairs');
  assert.equal(Buffer.from(encoded[19]!).toString(), 'jpg');
  assert.deepEqual(same, [true, false, true, false, true, false, true, false, true, false]);
});

test('a file that is no set is refused, with the reason', async () => {
  const cases: [Buffer, RegExp][] = [
    [Buffer.alloc(0), /is empty; an insightface/],
    [Buffer.from('PK\x03\x04'), /is a ZIP archive; .*torch\.save/],
    [Buffer.from([0x1f, 0x8b, 8, 0]), /is a gzip archive; .*gunzip/],
    [Buffer.from('<html>404'), /is a web page; .*download it again/],
    [Buffer.from('N.'), /no pair of two lists/],
    [Buffer.from('(NNt.'), /no pair of two lists/],
    [Buffer.from('((l(l(lt.'), /no pair of two lists/],
    [set(pictures(20), answers(9)), /20 pictures for 9 pairs; two pictures a pair/],
    [set(pictures(19), answers(10)), /19 pictures for 10 pairs/],
    [set([], []), /0 pairs; at least 10/],
    [set(pictures(18), answers(9)), /9 pairs; at least 10/],
    [set([...pictures(19), 'N'], answers(10)), /picture 19 is no byte string/],
    [set(pictures(20), [...answers(9), 'C\x01x']), /pair 9 is said/],
    [
      set(
        pictures(20),
        Array.from({ length: 10 }, () => '\x88'),
      ),
      /all pairs are the same; pairs of both kinds/,
    ],
    [
      set(
        pictures(20),
        Array.from({ length: 10 }, () => '\x89'),
      ),
      /all pairs differ; pairs of both kinds/,
    ],
  ];
  for (const [bytes, message] of cases) {
    assert.throws(
      () => parseVerificationSet(bytes, '/d/x.bin'),
      (error) =>
        error instanceof FacetrainError &&
        error.code === 'InvalidVerificationSet' &&
        error.subject === '/d/x.bin' &&
        error.exitCode === 2 &&
        message.test(error.message),
      String(message),
    );
  }
  await assert.rejects(
    readVerificationSet('/nowhere/x.bin'),
    (error) =>
      error instanceof FacetrainError &&
      error.code === 'InvalidVerificationSet' &&
      /^\/nowhere\/x.bin: no such file or directory \(ENOENT\); an insightface/.test(error.message),
  );
});

test('pictures and answers of every type that NumPy takes', () => {
  // A line: what was pickled, and the base64 of pickle.dumps by Python 3.11 and NumPy 2.
  const file = new URL('../testing/verification-set-types.txt', import.meta.url);
  for (const line of readFileSync(file, 'utf8').trim().split('\n')) {
    const [name, data] = line.split('|');
    const { encoded, same } = parseVerificationSet(Buffer.from(data!, 'base64'), name!);
    assert.deepEqual(same, [true, false, true, false, true, false, true, false, true, false], name);
    assert.equal(encoded.length, 20, name);
    assert.equal(Buffer.from(encoded[0]!).toString(), 'jpg', name);
  }
});
