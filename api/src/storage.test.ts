import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  destination,
  fileUri,
  joinStorageUri,
  normalStorageUri,
  parseStorageUri,
  placeOf,
  placesAbove,
  type StorageLocation,
  s3Uri,
  source,
  storageAddress,
} from './storage.ts';

describe('a storage uri is split into', () => {
  const cases: Record<string, StorageLocation> = {
    'file:///data/faces': { scheme: 'file', path: '/data/faces' },
    'file:///my%20faces/J%C3%BCrgen': { scheme: 'file', path: '/my faces/Jürgen' },
    // Not a separator, not a parent folder, not UTF-8, no escape.
    'file:///a%2Fb/%2e%2E/%ff/50%/%zz': { scheme: 'file', path: '/a%2Fb/%2e%2E/%ff/50%/%zz' },
    'hostpath:///a%20b': { scheme: 'hostpath', path: '/a%20b' },
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

test('fileUri is the inverse of parseStorageUri', () => {
  for (const path of ['/a b', '/a%20b', '/100%', '/%25%2520', '/ü', 'a/%2F'])
    assert.deepEqual(parseStorageUri(fileUri(path)), { scheme: 'file', path });
});

test('parts are joined by one slash', () => {
  assert.equal(joinStorageUri('pvc://claim/', 'a', 'b'), 'pvc://claim/a/b');
  assert.equal(joinStorageUri('s3://bucket', 'a'), 's3://bucket/a');
});

describe('spellings of one place have one normal form', () => {
  const cases: Record<string, string[]> = {
    'pvc://claim': ['pvc://claim/', 'pvc://claim//', 'pvc://claim/.', 'pvc://claim/./'],
    'pvc://claim/a/b': ['pvc://claim//a/b', 'pvc://claim/a//b/', 'pvc://claim/./a/././b/.'],
    'pvc://claim/.a/b..c/...': ['pvc://claim/.a//b..c/.../'],
    'hostpath:///': ['hostpath:////', 'hostpath:///.'],
    'hostpath:///a/b': ['hostpath:////a/./b//'],
    'file:///a': ['file:////a/'],
    'file://../a': ['file://..//a/', 'file://./../a'],
    'file://.': ['file://./'],
    'file:///a b/%2520': ['file:///a%20b/%2520/'],
    's3://bucket': ['s3://bucket/', 's3://bucket//'],
    's3://bucket/a/b': ['s3://bucket/a/b/', 's3://bucket/a/b//'],
    // In an object store these are other keys.
    's3://bucket/a//b': ['s3://bucket/a//b/'],
    's3://bucket/a/./b': [],
    's3://bucket//a': [],
  };
  for (const [normal, spellings] of Object.entries(cases))
    for (const uri of [normal, ...spellings]) test(uri, () => assert.equal(normalStorageUri(uri), normal));
});

describe('a place', () => {
  const at = (endpoint: string) => placeOf({ uri: 's3://models/a/', s3: { endpoint, forcePathStyle: false } });
  test('is the same for all spellings of a store', () => {
    const place = 's3+http://store:9000/models/a';
    for (const endpoint of ['http://store:9000', 'http://store:9000/', 'HTTP://Store:9000'])
      assert.equal(at(endpoint), place);
    assert.equal(at('https://store:443'), at('https://store'));
    assert.notEqual(at('https://store'), at('http://store'));
    assert.equal(at('https://s3.eu-west-1.amazonaws.com'), placeOf({ uri: 's3://models/a' }));
  });
  test('is unknown for what only a pod template mounts', () => assert.equal(placeOf({ uri: 'file:///out' }), null));
  test('is inside of others, up to its claim, its bucket or the root', () => {
    assert.deepEqual(placesAbove('pvc://claim/a/b'), ['pvc://claim/a', 'pvc://claim']);
    assert.deepEqual(placesAbove('pvc://claim'), []);
    assert.deepEqual(placesAbove(placeOf({ uri: 'hostpath:///a/b' })!), [
      'hostpath:///a',
      placeOf({ uri: 'hostpath:///' }),
    ]);
    assert.deepEqual(placesAbove('s3://models/a'), ['s3://models']);
  });
});

describe('".." is refused', () => {
  const uris: Record<string, boolean> = {
    'pvc://claim/..': false,
    'pvc://claim/a/../b': false,
    'hostpath:///../etc': false,
    's3://bucket/a/../b': false,
    'file:///a/..': false,
    'pvc://claim/a..b/..c/d..': true,
    // `facetrain run` resolves it.
    'file://../a': true,
  };
  for (const [uri, isAllowed] of Object.entries(uris))
    test(`${uri}: ${isAllowed ? 'no' : 'yes'}`, () => {
      for (const schema of [source('x'), destination('x')]) {
        const { success, error } = schema.safeParse({ uri });
        assert.equal(success, isAllowed, uri);
        if (!success) assert.match(error!.message, /must not contain \\"\.\.\\"/);
      }
    });
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
