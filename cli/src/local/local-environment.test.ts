import assert from 'node:assert/strict';
import { test } from 'node:test';
import { localEnvironment } from './local-environment.ts';

test('fetched data is kept in the run’s own folder, or in the cache that the manifest names', () => {
  const environment = localEnvironment('/run-1', { rendezvous: 1, progress: 2 });
  const fetched = (cache?: string) => {
    const { path, fetch, volume } = environment.storage(
      'dataset',
      { uri: 's3://faces/ms1mv3', s3: { forcePathStyle: false, ...(cache !== undefined && { cache }) } },
      'read',
    );
    assert.equal(volume, undefined);
    assert.deepEqual(fetch!.args.slice(0, 5), ['fetch', '--uri', 's3://faces/ms1mv3', '--to', path]);
    return { path, shared: fetch!.args.includes('--shared') };
  };
  assert.deepEqual(fetched(), { path: '/run-1/inputs/dataset', shared: false });
  assert.deepEqual(fetched('hostpath:///var/cache'), { path: '/var/cache/aws/faces/ms1mv3', shared: true });
  assert.deepEqual(fetched('pvc://shared/faces'), {
    path: '/run-1/volumes/shared/faces/aws/faces/ms1mv3',
    shared: true,
  });
});
