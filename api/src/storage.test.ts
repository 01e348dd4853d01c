import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { joinStorageUri, parseStorageUri, type StorageLocation, s3Uri, storageAddress } from './storage.ts';

describe('a storage uri is split into', () => {
  const cases: Record<string, StorageLocation> = {
    'file:///data/faces': { scheme: 'file', path: '/data/faces' },
    'file://faces': { scheme: 'file', path: 'faces' },
    'hostpath:///srv': { scheme: 'hostpath', path: '/srv' },
    'pvc://claim': { scheme: 'pvc', claim: 'claim', path: '' },
    'pvc://claim/a/b': { scheme: 'pvc', claim: 'claim', path: 'a/b' },
    's3://bucket': { scheme: 's3', bucket: 'bucket', key: '' },
    's3://bucket/a/b/': { scheme: 's3', bucket: 'bucket', key: 'a/b/' },
  };
  for (const [uri, want] of Object.entries(cases)) test(uri, () => assert.deepEqual(parseStorageUri(uri), want));

  test('nothing for another scheme', () => assert.throws(() => parseStorageUri('ftp://x'), TypeError));
});

test('s3Uri is the inverse of parseStorageUri', () => {
  const uri = 's3://models/faces/v1';
  const location = parseStorageUri(uri);
  assert(location.scheme === 's3');
  assert.equal(s3Uri(location.bucket, location.key), uri);
});

test('parts are joined by one slash', () => {
  assert.equal(joinStorageUri('pvc://claim/', 'a', 'b'), 'pvc://claim/a/b');
  assert.equal(joinStorageUri('s3://bucket', 'a'), 's3://bucket/a');
});

describe('an address', () => {
  const s3 = { endpoint: 'http://store:9000', region: 'eu', forcePathStyle: true, secretRef: { name: 'keys' } };
  test('has what reaches the server, and no credentials', () =>
    assert.deepEqual(storageAddress({ uri: 's3://models/a', s3 }), {
      uri: 's3://models/a',
      endpoint: 'http://store:9000',
      region: 'eu',
      forcePathStyle: true,
    }));
  test('is that of AWS without s3', () =>
    assert.deepEqual(storageAddress({ uri: 's3://models/a' }), {
      uri: 's3://models/a',
      endpoint: null,
      region: null,
      forcePathStyle: false,
    }));
});
