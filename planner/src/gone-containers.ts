/**
 * Containers of which a kubelet finds nothing any more, although they ran: it ends their pod, or somebody has removed
 * them. It reports them like such that wait for their first start, or for another one, and adds a restart that never
 * was (convertToAPIContainerStatuses of pkg/kubelet/kubelet_pods.go). With the end of the pod they get an exit code
 * that is made up (TerminatePod of pkg/kubelet/status).
 */
import { INITIALIZING } from './attempt.ts';

/** Of the status of a container in Kubernetes' API. */
export interface ContainerStates {
  state?: { waiting?: { reason?: string }; running?: object; terminated?: { reason?: string } };
  /** Of the container before. */
  lastState?: { terminated?: { reason?: string } };
  restartCount?: number;
}

/** The reason of an end that a kubelet did not see. */
const UNKNOWN_END = 'ContainerStatusUnknown';

/** Reasons that every container waits for while its pod starts. */
export const NORMAL_START = new Set(['ContainerCreating', INITIALIZING]);

/** Whether nothing is found of a container that ran, in a pod that has not ended. */
export const isGone = ({ state, lastState }: ContainerStates): boolean =>
  lastState?.terminated !== undefined && state?.waiting !== undefined && NORMAL_START.has(state.waiting.reason ?? '');

/** How often the kubelet has started a container again. */
export function timesStartedAgain({ state, lastState, restartCount = 0 }: ContainerStates): number {
  const endedUnseen = lastState?.terminated?.reason === UNKNOWN_END;
  const hasRunSince =
    state?.running !== undefined || (state?.terminated !== undefined && state.terminated.reason !== UNKNOWN_END);
  return endedUnseen && !hasRunSince ? restartCount - 1 : restartCount;
}
