import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pickleVerificationSet } from './pickle-verification-set.ts';
import { parseVerificationSet } from './verification-set.ts';

test('a set that is written is read again', () => {
  const pictures = Array.from({ length: 20 }, (_, i) => Uint8Array.from({ length: 300 * i }, (_, k) => k * i));
  const same = Array.from({ length: 10 }, (_, i) => i % 3 === 0);
  const read = parseVerificationSet(pickleVerificationSet(pictures, same), 'set.bin');
  assert.deepEqual(read.same, same);
  const encoded = Object.values(read).find(
    (value): value is Uint8Array[] => Array.isArray(value) && value.length === 20,
  );
  assert.deepEqual(
    encoded!.map((picture) => Buffer.from(picture)),
    pictures.map((picture) => Buffer.from(picture)),
  );
});
