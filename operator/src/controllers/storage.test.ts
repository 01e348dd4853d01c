import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fetchContainer } from './storage.ts';

test('what fetches is told how to reach the store, and nothing secret', () => {
  const mounts = [{ name: 'dataset', mountPath: '/mnt/dataset' }];
  const plain = fetchContainer('dataset', { uri: 's3://faces/a' }, '/mnt/dataset/data', mounts);
  assert.deepEqual(plain, { name: 'fetch-dataset', args: ['fetch', '--uri', 's3://faces/a', '--to', '/mnt/dataset/data'], env: [], volumeMounts: mounts });
  const s3 = { endpoint: 'http://store:9000', region: 'x', forcePathStyle: true, secretRef: { name: 'keys' } };
  assert.deepEqual(fetchContainer('dataset', { uri: 's3://faces/a', s3 }, '/d', []).args.slice(5), ['--endpoint', 'http://store:9000', '--region', 'x', '--force-path-style']);
});
