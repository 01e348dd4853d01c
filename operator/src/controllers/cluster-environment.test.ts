import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { StorageRef } from '@facetrain/api';
import type { MountedStorage } from '@facetrain/planner/environment';
import { mountWithCredentials } from '@facetrain/planner/pod-storage';
import { clusterEnvironment } from './cluster-environment.ts';

const environment = clusterEnvironment('registry.example/trainer:1');
const at = '/mnt/facetrain/dataset';

describe('how storage is mounted', () => {
  const cases: Record<string, { reference: StorageRef; access: 'read' | 'write'; want: MountedStorage }> = {
    'a claim, to read': {
      reference: { uri: 'pvc://data' },
      access: 'read',
      want: {
        path: at,
        volume: { name: 'dataset', persistentVolumeClaim: { claimName: 'data' } },
        mount: { name: 'dataset', mountPath: at, readOnly: true },
      },
    },
    'a folder in a claim, to write: the whole claim, as the kubelet would create a subPath as root': {
      reference: { uri: 'pvc://data/a/b' },
      access: 'write',
      want: {
        path: `${at}/a/b`,
        volume: { name: 'dataset', persistentVolumeClaim: { claimName: 'data' } },
        mount: { name: 'dataset', mountPath: at },
      },
    },
    'a path of the node, to read: it must exist': {
      reference: { uri: 'hostpath:///faces' },
      access: 'read',
      want: {
        path: at,
        volume: { name: 'dataset', hostPath: { path: '/faces' } },
        mount: { name: 'dataset', mountPath: at, readOnly: true },
      },
    },
    'a path of the node, to write: it is created': {
      reference: { uri: 'hostpath:///out' },
      access: 'write',
      want: {
        path: at,
        volume: { name: 'dataset', hostPath: { path: '/out', type: 'DirectoryOrCreate' } },
        mount: { name: 'dataset', mountPath: at },
      },
    },
    'a path in the image': { reference: { uri: 'file:///faces' }, access: 'read', want: { path: '/faces' } },
    'an object store, to write: a scratch folder from which the program uploads': {
      reference: { uri: 's3://models/x', s3: { forcePathStyle: false, secretRef: { name: 'store' } } },
      access: 'write',
      want: { path: at, volume: { name: 'dataset', emptyDir: {} }, mount: { name: 'dataset', mountPath: at } },
    },
  };
  for (const [name, { reference, access, want }] of Object.entries(cases)) {
    test(name, () => assert.deepEqual(mountWithCredentials(environment, 'dataset', reference, access), want));
  }

  test('an object store, to read: an init container fetches, with credentials by reference', () => {
    const s3 = { endpoint: 'http://store:9000', region: 'eu', forcePathStyle: true, secretRef: { name: 'store' } };
    const { path, volume, fetch } = mountWithCredentials(
      environment,
      'dataset',
      { uri: 's3://data/faces', s3 },
      'read',
    );
    assert.deepEqual([path, volume], [`${at}/data`, { name: 'dataset', emptyDir: {} }]);
    assert.deepEqual(fetch!.args, [
      'fetch',
      '--uri',
      's3://data/faces',
      '--to',
      path,
      '--endpoint',
      'http://store:9000',
      '--region',
      'eu',
      '--force-path-style',
    ]);
    assert.deepEqual(fetch!.volumeMounts, [{ name: 'dataset', mountPath: at }]);
    for (const entry of fetch!.env)
      assert.partialDeepStrictEqual(entry, { valueFrom: { secretKeyRef: { name: 'store' } } });
  });

  test('an object store with a cache: one pod fetches for all, and the trainer mounts the cache read-only', () => {
    const s3 = { endpoint: 'http://store:9000', forcePathStyle: true, cache: 'pvc://shared/faces' };
    const { path, volume, mount, fetch } = mountWithCredentials(
      environment,
      'dataset',
      { uri: 's3://data/ms1mv3/', s3 },
      'read',
    );
    assert.equal(path, `${at}/faces/store:9000/data/ms1mv3`);
    assert.deepEqual(
      [volume, mount],
      [
        { name: 'dataset', persistentVolumeClaim: { claimName: 'shared' } },
        { name: 'dataset', mountPath: at, readOnly: true },
      ],
    );
    assert.deepEqual(fetch!.args, [
      'fetch',
      '--uri',
      's3://data/ms1mv3/',
      '--to',
      path,
      '--shared',
      '--endpoint',
      'http://store:9000',
      '--force-path-style',
    ]);
    assert.deepEqual(fetch!.volumeMounts, [{ name: 'dataset', mountPath: at }]);
    const node = mountWithCredentials(
      environment,
      'dataset',
      { uri: 's3://data/../x', s3: { forcePathStyle: false, cache: 'hostpath:///var/cache/faces' } },
      'read',
    );
    assert.deepEqual(
      [node.path, node.volume],
      [
        `${at}/aws/data/%2E%2E/x`,
        { name: 'dataset', hostPath: { path: '/var/cache/faces', type: 'DirectoryOrCreate' } },
      ],
    );
  });
});

test('pods serve their progress on IPv6 and IPv4', () => {
  assert.deepEqual(environment.progress(8080), { host: '::', port: 8080 });
});

test('ranks find rank 0 of the attempt by its name in the headless Service', () => {
  assert.deepEqual(environment.master({ name: 'faces', namespace: 'team' }, 3, 29_500), {
    host: 'faces-3-0.faces.team.svc',
    port: 29_500,
  });
});
