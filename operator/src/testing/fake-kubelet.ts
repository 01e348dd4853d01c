/** Plays the kubelet in tests without one: writes what it would write into the status of a pod. */
import { pods } from '../controllers/resources.ts';
import type { Client } from '../runtime/client.ts';

export type FakePhase = 'Pending' | 'Running' | 'Succeeded' | 'Failed';

export interface FakePodStatus {
  /** Of the trainer's container, once it has ended. */
  exitCode?: number;
  /** The termination message of the trainer's container; an object is written as JSON. */
  message?: string | object;
  podIP?: string;
  /** Why the trainer's container waits, while the phase is Pending. */
  waiting?: { reason: string; message?: string };
}

export async function setPodStatus(
  client: Client,
  namespace: string,
  name: string,
  phase: FakePhase,
  { exitCode, message, podIP, waiting }: FakePodStatus = {},
): Promise<void> {
  const text = typeof message === 'object' ? JSON.stringify(message) : message;
  const terminated = {
    exitCode,
    reason: exitCode === 0 ? 'Completed' : 'Error',
    finishedAt: new Date().toISOString(),
    ...(text !== undefined && { message: text }),
  };
  const state =
    exitCode !== undefined
      ? { terminated }
      : phase === 'Pending'
        ? { waiting: waiting ?? { reason: 'ContainerCreating' } }
        : { running: {} };
  const ready = phase === 'Running';
  const status = {
    phase,
    ...(podIP && { podIP, podIPs: [{ ip: podIP }] }),
    conditions: [
      { type: 'Ready', status: ready ? 'True' : 'False' },
      { type: 'PodScheduled', status: 'True' },
    ],
    containerStatuses: [{ name: 'facetrain', ready, restartCount: 0, image: 'x', imageID: '', state }],
  };
  await client.patch(pods, namespace, name, { status }, 'status');
}
