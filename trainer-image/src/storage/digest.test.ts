import assert from 'node:assert/strict';
import { test } from 'node:test';
import { digestBytes } from './digest.ts';

test('the digest of bytes in memory, also of more than Node hashes at once', () => {
  assert.equal(
    digestBytes(new TextEncoder().encode('abc')).sha256,
    'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad', // FIPS 180-4
  );
  const bytes = new Uint8Array(2 ** 31 + 1);
  bytes[bytes.length - 1] = 1;
  // By sha256sum.
  const sha256 = '60f8b76720e075ea4e7151a3b56c5ebc97934e47f08ee20f9fffc891c35882fc';
  assert.deepEqual(digestBytes(bytes), { sha256, bytes: bytes.length });
});
