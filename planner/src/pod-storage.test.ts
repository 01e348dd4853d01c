import assert from 'node:assert/strict';
import { posix } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import type { EnvVar } from './objects.ts';
import { cachePath, credentialEnv, fetchContainer, joinFetches, volumesOf, writtenStorage } from './pod-storage.ts';
import { testEnvironment } from './testing/test-environment.ts';
import { trainerPlaces } from './written-places.ts';

test('the fetch container gets the address of the store as arguments, and no credentials', () => {
  const mounts = [{ name: 'dataset', mountPath: '/mnt/dataset' }];
  const plain = fetchContainer('dataset', { uri: 's3://faces/a' }, '/mnt/dataset/data', mounts);
  assert.deepEqual(plain, {
    name: 'fetch-dataset',
    args: ['fetch', '--uri', 's3://faces/a', '--to', '/mnt/dataset/data'],
    env: [],
    volumeMounts: mounts,
  });
  const s3 = { endpoint: 'http://store:9000', region: 'x', forcePathStyle: true, secretRef: { name: 'keys' } };
  assert.deepEqual(fetchContainer('dataset', { uri: 's3://faces/a', s3 }, '/d', []).args.slice(5), [
    '--endpoint',
    'http://store:9000',
    '--region',
    'x',
    '--force-path-style',
  ]);
});

test('the fetch container of a cache gets --shared', () => {
  const s3 = { forcePathStyle: false, cache: 'pvc://shared/faces' };
  assert.deepEqual(fetchContainer('dataset', { uri: 's3://faces/a', s3 }, '/d', []).args, [
    'fetch',
    '--uri',
    's3://faces/a',
    '--to',
    '/d',
    '--shared',
  ]);
});

test('what is fetched with the same credentials is fetched by one container', () => {
  const fetchOf = (name: string, env: EnvVar[]) => ({
    ...fetchContainer(name, { uri: `s3://faces/${name}` }, `/mnt/${name}`, [{ name, mountPath: `/mnt/${name}` }]),
    env,
  });
  const keys = credentialEnv({ forcePathStyle: false, secretRef: { name: 'keys' } });
  assert.deepEqual(joinFetches([]), []);
  assert.deepEqual(joinFetches([fetchOf('dataset', keys)]), [fetchOf('dataset', keys)]);
  const joined = joinFetches([fetchOf('dataset', keys), fetchOf('model', []), fetchOf('evaluation-0', keys)]);
  assert.deepEqual(joined, [
    {
      name: 'fetch-dataset',
      args: [
        ...['fetch', '--uri', 's3://faces/dataset', '--to', '/mnt/dataset'],
        ...['--and', '--uri', 's3://faces/evaluation-0', '--to', '/mnt/evaluation-0'],
      ],
      env: keys,
      volumeMounts: ['dataset', 'evaluation-0'].map((name) => ({ name, mountPath: `/mnt/${name}` })),
    },
    fetchOf('model', []),
  ]);
});

test('trainers mount nothing for an object store but its credentials, each place its own', () => {
  const reference = (name: string) => ({
    uri: `s3://models/${name}`,
    s3: { forcePathStyle: false, secretRef: { name: `keys-of-${name}` } },
  });
  const both = ['checkpoints', 'output'].map((name) => writtenStorage(testEnvironment, name, reference(name)));
  assert.deepEqual(volumesOf(both), {
    volumes: ['checkpoints', 'output'].map((name) => ({
      name: `${name}-credentials`,
      secret: { secretName: `keys-of-${name}` },
    })),
    volumeMounts: ['checkpoints', 'output'].map((name) => ({
      name: `${name}-credentials`,
      mountPath: `/mnt/${name}-credentials`,
      readOnly: true,
    })),
  });
  assert.deepEqual(
    both.map(({ store }) => store?.credentials),
    ['/mnt/checkpoints-credentials', '/mnt/output-credentials'],
  );
  const withIdentity = writtenStorage(testEnvironment, 'output', { uri: 's3://models/faces' });
  assert.deepEqual(volumesOf([withIdentity]), { volumes: [], volumeMounts: [] });
  assert.equal(writtenStorage(testEnvironment, 'output', { uri: 'pvc://claim/out' }).store, null);
});

test('places in an object store are of its endpoint', () => {
  const s3 = { endpoint: 'https://store:9000', forcePathStyle: true };
  assert.deepEqual(trainerPlaces({ output: { uri: 's3://models/faces/', s3 }, checkpoint: { uri: 's3://states/a' } }), [
    's3+https://store:9000/models/faces/model/backbone.onnx',
    's3+https://store:9000/models/faces/train-report.json',
    's3+https://store:9000/models/faces/train-report.html',
    's3://states/a',
  ]);
  assert.equal(
    trainerPlaces({ output: { uri: 's3://models/faces', s3 } }).at(-1),
    's3+https://store:9000/models/faces/checkpoints',
  );
});

test('a path in a cache is the same for the same object, and different for any other', () => {
  const at = (uri: string, endpoint?: string) =>
    cachePath({
      uri,
      s3: { forcePathStyle: false, ...(endpoint !== undefined && { endpoint }), cache: 'pvc://shared' },
    });
  assert.equal(at('s3://faces/a/train'), 'aws/faces/a/train');
  assert.equal(at('s3://faces/a/train/', 'https://store:9000/'), 'store:9000/faces/a/train');
  assert.equal(at('s3://faces/a/train', 'http://store:9000'), 'store:9000/faces/a/train');
  const places = [
    at('s3://faces/a'),
    at('s3://faces/b'),
    at('s3://other/a'),
    at('s3://faces/a', 'http://one'),
    at('s3://faces/a', 'http://one:9000'),
  ];
  assert.equal(new Set(places).size, places.length);
});

test('no key leads out of a cache', () => {
  const segment = fc.oneof(
    fc.constantFrom('.', '..', '', '...'),
    fc.string({ unit: fc.constantFrom('a', '.', '/', '%', ' ') }),
  );
  fc.assert(
    fc.property(fc.array(segment), segment, (key, host) => {
      const path = cachePath({
        uri: `s3://faces/${key.join('/')}`,
        s3: { forcePathStyle: false, endpoint: `http://x/${host}`, cache: 'pvc://shared' },
      });
      assert.equal(posix.join('/cache', path), `/cache/${path}`);
    }),
  );
});
