import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
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

test('Events about an earlier program of the pod do not explain the end of this one', async () => {
  const pod = stoppedPod(new Date(Date.now() + 3_600_000));
  const startedAt = (time: string | null) => {
    pod.status!.containerStatuses![0]!.state!.terminated!.startedAt = time;
    return readTwice(pod);
  };
  assert.equal((await startedAt('2026-01-01T00:00:01Z')).message, KILLING.message);
  assert.equal((await startedAt('2026-01-01T00:00:02Z')).message, undefined);
  // As the API server writes a time that is not known.
  assert.equal((await startedAt(null)).message, KILLING.message);
});

describe('the words about the end of a program that the kubelet has started again in its pod', () => {
  const finishedAt = new Date(Date.now() - 60_000).toISOString();
  const end = { exitCode: 137, reason: 'Error', startedAt: '2026-01-01T00:00:00Z', finishedAt };
  const rules = [{ action: 'Restart', exitCodes: { operator: 'In', values: [4, 137] } }];
  const podWith = (resourceVersion: string, status: object): PodObject => {
    const { metadata } = stoppedPod(new Date());
    return {
      metadata: { ...metadata, resourceVersion },
      spec: { containers: [{ name: 'facetrain', restartPolicyRules: rules }] },
      status: { phase: 'Running', containerStatuses: [{ name: 'facetrain', ...status }] },
    };
  };
  const ended = podWith('7', { state: { terminated: end } });
  const restarted = podWith('8', { state: { running: {} }, restartCount: 1, lastState: { terminated: end } });
  /** Reads these pods one after the other. @returns the words about the end, and how often the API server was asked */
  async function readAll(pods: PodObject[], events = [KILLING]) {
    let requests = 0;
    const list = async () => {
      requests += 1;
      return { items: events };
    };
    const causes = new KillCauses({ list } as unknown as Pick<Client, 'list'>);
    for (const pod of pods) await causes.read('job', [pod]);
    const { message, containerRestarts } = causes.explain('job', observePod(pods.at(-1)!)!);
    return { message, ofLastEnd: containerRestarts!.lastEnd!.message, requests };
  }

  test('stay with that end', async () => {
    const words = { message: undefined, ofLastEnd: KILLING.message, requests: 1 };
    assert.deepEqual(await readAll([ended, restarted, restarted]), words);
  });

  test('are found although nobody looked before it was started again', async () => {
    const words = { message: undefined, ofLastEnd: KILLING.message, requests: 1 };
    assert.deepEqual(await readAll([restarted, restarted]), words);
  });

  test('are not looked for with every change of the pod', async () => {
    const changed = { ...restarted, metadata: { ...restarted.metadata, resourceVersion: '9' } };
    assert.deepEqual(await readAll([ended, restarted, changed], []), {
      message: undefined,
      ofLastEnd: undefined,
      requests: 1,
    });
  });

  test('do not explain the end of the next program', async () => {
    const later = { ...end, startedAt: finishedAt, finishedAt: new Date(Date.now() - 30_000).toISOString() };
    const lastState = { terminated: later };
    const again = podWith('9', { state: { running: {} }, restartCount: 2, lastState });
    assert.deepEqual(await readAll([restarted, again]), { message: undefined, ofLastEnd: undefined, requests: 2 });
  });
});
