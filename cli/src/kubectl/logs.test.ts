import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Cluster } from './cluster.ts';
import { writeLogs } from './logs.ts';

test('the log of a rank that no attempt has is not waited for', async () => {
  const placeholder = {
    metadata: { name: 'faces-0-2', labels: { 'facetrain.dev/rank': '2', 'facetrain.dev/placeholder': 'true' } },
    spec: { nodeName: 'node-1' },
  };
  const cluster = {
    namespace: 'faces',
    job: async () => ({ metadata: { uid: 'job' }, spec: { trainers: { replicas: 2, elastic: { maxReplicas: 3 } } } }),
    pods: async () => [placeholder],
  } as unknown as Cluster;
  const follow = (rank: number, signal: AbortSignal) =>
    writeLogs(cluster, 'faces', { rank, follow: true }, async () => {}, assert.fail, signal);
  await assert.rejects(follow(3, new AbortController().signal), /faces: no pod of rank 3; it has no pods/);
  // Rank 2 may come. What holds its place has no log.
  await assert.rejects(follow(2, AbortSignal.timeout(100)), { name: /AbortError|TimeoutError/ });
});
