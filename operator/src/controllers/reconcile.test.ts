import assert from 'node:assert/strict';
import { test } from 'node:test';
import { silentLog } from '../testing/silent-log.ts';
import { clusterEnvironment } from './cluster-environment.ts';
import { faceTrainJobReconciler, type ReconcilerOptions } from './reconcile.ts';
import type { JobObject } from './resources.ts';

test('a job with an unknown field is left alone while a newer operator may come, and then says so', async (t) => {
  let now = 1_000_000;
  t.mock.method(performance, 'now', () => now);
  const job: JobObject = {
    metadata: { name: 'a', namespace: 'n', uid: 'u', generation: 1, resourceVersion: '1', creationTimestamp: '' },
    spec: {
      dataset: { uri: 'pvc://data/a' },
      model: { backbone: 'iresnet50', depth: 1 },
      output: { uri: 'pvc://out/a' },
    },
    status: { attempt: 1, observedGeneration: 1 },
  };
  const requests: unknown[][] = [];
  const client = new Proxy(
    {},
    {
      get:
        (_, method) =>
        async (...rest: unknown[]) =>
          requests.push([method, ...rest]),
    },
  );
  const options = {
    client,
    caches: { FaceTrainJob: { get: () => job, put: () => {} } },
    folders: { setStarting: () => {} },
    events: { emit: () => {} },
    environment: clusterEnvironment('registry.example/trainer:1'),
    podGroupApis: {},
  } as unknown as ReconcilerOptions;
  const reconcile = faceTrainJobReconciler(options);
  for (const seconds of [0, 30, 89]) {
    now += 1000 * seconds;
    assert.deepEqual(await reconcile('n/a', silentLog), { requeueAfterSeconds: 30 });
  }
  assert.deepEqual(requests, []);
  now += 1000;
  await reconcile('n/a', silentLog);
  assert.equal(requests.length, 1);
  assert.match(JSON.stringify(requests), /"patch".*InvalidSpec.*newer than this operator: upgrade the operator/);
});
