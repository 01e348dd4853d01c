import assert from 'node:assert/strict';
import { test } from 'node:test';
import { restart } from './change.ts';
import type { Cluster } from './cluster.ts';

/** A job that has trained; what its QuantizeJob and the quantizer's pod are like each time that they are read. */
function quantizingJob(states: { phase: string; pod: string }[]) {
  const suspended: boolean[] = [];
  let reads = 0;
  const state = () => states[Math.min(reads, states.length - 1)]!;
  const cluster = {
    namespace: 'faces',
    job: async () => ({
      metadata: { name: 'faces', uid: 'job' },
      spec: {},
      status: { phase: suspended.length > 0 ? 'Suspended' : 'Quantizing', quantizeJobName: 'faces-quantize' },
    }),
    quantizeJob: async () => ({ metadata: { uid: 'child' }, status: { phase: state().phase } }),
    pods: async (uid: string) => {
      const phase = uid === 'child' ? state().pod : 'Succeeded';
      if (uid === 'child') reads++;
      return [{ metadata: {}, spec: {}, status: { phase } }];
    },
    inWords: (_: string, work: () => Promise<unknown>) => work(),
    client: {
      patch: async (...[, , , { spec }]: [unknown, unknown, unknown, { spec: { suspend: boolean } }]) =>
        void suspended.push(spec.suspend),
    },
  } as unknown as Cluster;
  return { cluster, suspended, reads: () => reads };
}

test('the restart of a job that has trained waits for its quantizer', async () => {
  const { cluster, suspended, reads } = quantizingJob([
    { phase: 'Running', pod: 'Running' },
    { phase: 'Suspended', pod: 'Running' },
    { phase: 'Suspended', pod: 'Failed' },
  ]);
  const { text } = await restart(cluster, 'faces', () => {}, new AbortController().signal);
  assert.equal(text, 'FaceTrainJob faces restarts its quantization\n');
  assert.deepEqual([suspended, reads()], [[true, false], 3]);
});

test('a restart that is stopped says that the job stays suspended', async () => {
  const { cluster, suspended } = quantizingJob([{ phase: 'Running', pod: 'Running' }]);
  const stop = new AbortController();
  const restarting = restart(cluster, 'faces', () => stop.abort(), stop.signal);
  await assert.rejects(
    restarting,
    /faces: is suspended, and its restart was stopped; `kubectl facetrain resume faces`/,
  );
  assert.deepEqual(suspended, [true]);
});

test('a restart that loses the API server says that the job stays suspended', async () => {
  const { cluster } = quantizingJob([{ phase: 'Running', pod: 'Running' }]);
  const pods = cluster.pods.bind(cluster);
  let asked = 0;
  cluster.pods = (uid) => (++asked > 2 ? Promise.reject(new Error('no route to host')) : pods(uid));
  await assert.rejects(
    restart(cluster, 'faces', () => {}, new AbortController().signal),
    /faces: is suspended, and its restart was stopped: no route to host; `kubectl facetrain resume faces` goes on/,
  );
});
