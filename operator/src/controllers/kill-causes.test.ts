import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Label } from '@facetrain/planner/names';
import type { Client } from '../runtime/client.ts';
import { KillCauses } from './kill-causes.ts';
import { observePod } from './observe.ts';
import type { PodEvent, PodObject } from './resources.ts';

const KILLING = {
  involvedObject: { fieldPath: 'spec.containers{facetrain}' },
  reason: 'Killing',
  message: 'Container facetrain failed liveness probe',
  lastTimestamp: '2026-01-01T00:00:01Z',
} as PodEvent;

const stoppedPod = (finishedAt: Date): PodObject => ({
  metadata: {
    name: 'faces-0-0',
    namespace: 'default',
    uid: 'pod',
    resourceVersion: '7',
    creationTimestamp: '2026-01-01T00:00:00Z',
    labels: { [Label.attempt]: '0', [Label.rank]: '0' },
  },
  spec: {},
  status: {
    phase: 'Failed',
    containerStatuses: [
      {
        name: 'facetrain',
        state: { terminated: { exitCode: 143, reason: 'Error', finishedAt: finishedAt.toISOString() } },
      },
    ],
  },
});

/** Reads twice: the Event comes between. @returns how often the API server was asked, and the words about the end */
async function readTwice(pod: PodObject) {
  const events: PodEvent[] = [];
  let requests = 0;
  const list = () => {
    requests += 1;
    return Promise.resolve({ items: [...events] });
  };
  const causes = new KillCauses({ list } as unknown as Pick<Client, 'list'>);
  await causes.read('job', [pod]);
  events.push(KILLING);
  await causes.read('job', [pod]);
  await causes.read('job', [pod]);
  return { requests, message: causes.explain('job', observePod(pod)!).message };
}

test('an Event that comes after the end that it explains is found, and then not asked for again', async () => {
  // Not past, by the clock of the node, however long the test takes.
  const aMoment = new Date(Date.now() + 3_600_000);
  assert.deepEqual(await readTwice(stoppedPod(aMoment)), { requests: 2, message: KILLING.message });
});

test('Events about an end of long ago are listed once', async () => {
  const longAgo = new Date(Date.now() - 60_000);
  assert.deepEqual(await readTwice(stoppedPod(longAgo)), { requests: 1, message: undefined });
});
