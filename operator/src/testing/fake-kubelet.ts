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
  /** How often the trainer's container was started again, the last time after this exit code. */
  restarted?: { count: number; exitCode: number };
}

export async function setPodStatus(
  client: Client,
  namespace: string,
  name: string,
  phase: FakePhase,
  { exitCode, message, podIP, waiting, restarted }: FakePodStatus = {},
): Promise<void> {
  const text = typeof message === 'object' ? JSON.stringify(message) : message;
  const endOf = (code: number) => ({
    exitCode: code,
    reason: code === 0 ? 'Completed' : 'Error',
    finishedAt: new Date().toISOString(),
    ...(text !== undefined && { message: text }),
  });
  const state =
    exitCode !== undefined
      ? { terminated: endOf(exitCode) }
      : phase === 'Pending'
        ? { waiting: waiting ?? { reason: 'ContainerCreating' } }
        : { running: {} };
  const ready = phase === 'Running' && exitCode === undefined;
  const status = {
    phase,
    ...(podIP && { podIP, podIPs: [{ ip: podIP }] }),
    conditions: [
      { type: 'Ready', status: ready ? 'True' : 'False' },
      { type: 'PodScheduled', status: 'True' },
    ],
    containerStatuses: [
      {
        name: 'facetrain',
        ready,
        restartCount: restarted?.count ?? 0,
        image: 'x',
        imageID: '',
        state,
        ...(restarted && { lastState: { terminated: endOf(restarted.exitCode) } }),
      },
    ],
  };
  await client.patch(pods, namespace, name, { status }, 'status');
}
