/**
 * Why an attempt has failed, and what the failure policy does about it.
 *
 * The failure of one rank ends the attempt: the other ranks wait in a collective until it times out, and exit with the
 * code "peer lost". The root cause is therefore looked for in this order: the rank that failed first with another exit
 * code; a rank whose pod was deleted or whose node is lost; at last a rank that lost a peer.
 */
import { type ErrorCode, ExitCode, type FailurePolicy } from '@facetrain/api';
import { creationIsOver, isUnknown, type JobView, outcomeOf } from './attempt.ts';
import { podName } from './names.ts';
import type { ObservedPod } from './observed.ts';
import { truncate } from './plain-data.ts';
import { MAX_MESSAGE, MAX_REASON, Reason } from './reasons.ts';
import { secondsSince } from './time.ts';

/** The failure of an attempt, before the failure policy is applied. */
export interface Failure {
  reason: string;
  message: string;
  /** The cluster ended the pod (eviction, preemption, a lost node). The restart is not counted. */
  disruption: boolean;
  /** Words that `reasons` of a rule in the failure policy can match. */
  ruleReasons: string[];
  exitCode?: number;
  rank?: number;
  node?: string;
}

/** Seconds to wait for the root cause, if so far only ranks that lost a peer have been observed. */
export const ROOT_CAUSE_WAIT_SECONDS = 2;

/** The failure that ends the current attempt; null if there is none, or if its cause is not known yet. */
export function findFailure(view: JobView): Failure | null {
  const failed = view.ranks
    .filter((pod) => pod !== undefined && outcomeOf(pod) === 'failed')
    .sort(byFinishTime) as ObservedPod[];
  const rootCause = failed.find((pod) => !exitedWithPeerLost(pod));
  if (rootCause) return processFailure(rootCause);

  for (const [rank, pod] of view.ranks.entries()) {
    if (pod === undefined) {
      if (creationIsOver(view))
        return podFailure(Reason.podLost, `pod ${podName(view.identity, view.attempt, rank)} is gone`, { rank });
    } else if (pod.deleting && outcomeOf(pod) !== 'succeeded') {
      return {
        ...podFailure(
          pod.reason ?? (pod.disrupted ? Reason.disrupted : Reason.podDeleted),
          `pod ${pod.name} is being deleted`,
          pod,
        ),
        disruption: true,
      };
    } else if (pod.lostNode !== undefined && !view.toleratesNodeLoss && outcomeOf(pod) === null) {
      return { ...podFailure(Reason.nodeLost, `pod ${pod.name} is lost: ${pod.lostNode}`, pod), disruption: true };
    } else if (failed.length > 0 && isUnknown(pod)) {
      return {
        ...podFailure(
          Reason.nodeLost,
          `pod ${pod.name} is in phase ${pod.phase}: its node does not answer, and its peers have lost it`,
          pod,
        ),
        disruption: true,
      };
    }
  }

  const [peerLost] = failed;
  return peerLost === undefined || rootCauseMayFollow(peerLost, view) ? null : processFailure(peerLost);
}

/** Whether another rank, which has not ended yet, may turn out to be the root cause. */
function rootCauseMayFollow(peerLost: ObservedPod, view: JobView): boolean {
  if (peerLost.finishedAt === undefined || view.ranks.every((pod) => pod && outcomeOf(pod) !== null)) return false;
  const age = secondsSince(peerLost.finishedAt, view.now);
  return age >= 0 && age < ROOT_CAUSE_WAIT_SECONDS;
}

function byFinishTime(a: ObservedPod | undefined, b: ObservedPod | undefined): number {
  const end = (pod: ObservedPod | undefined) => (pod?.finishedAt === undefined ? Infinity : Date.parse(pod.finishedAt));
  return end(a) === end(b) ? a!.rank - b!.rank : end(a) - end(b);
}

const exitedWithPeerLost = (pod: ObservedPod): boolean => pod.exitCode === ExitCode.peerLost && !pod.disrupted;

/** Reasons of pods that the kubelet ended to protect its node, without setting the condition DisruptionTarget. */
const DISRUPTION_REASONS = new Set(['Evicted', 'Preempting', 'NodeLost', 'NodeShutdown', 'Shutdown', 'Terminated']);

function processFailure(pod: ObservedPod): Failure {
  const disruption = pod.disrupted || DISRUPTION_REASONS.has(pod.reason ?? '');
  // Kubernetes reports "Error" for every exit code but 0.
  const cause = pod.reason === 'Error' ? undefined : pod.reason;
  const reason = pod.termination?.code ?? cause ?? (pod.disrupted ? Reason.disrupted : reasonOfExit(pod.exitCode));
  const detail = pod.termination?.message;
  const ending = pod.exitCode === undefined ? 'failed' : `left with exit code ${pod.exitCode}`;
  const where = `${cause ? ` (${cause})` : ''}${pod.node ? ` on ${pod.node}` : ''}`;
  const message = `rank ${pod.rank} ${ending}${where}${detail ? `: ${detail}` : ''}`;
  return { ...podFailure(reason, message, pod), disruption };
}

function podFailure(reason: string, message: string, pod: Partial<ObservedPod>): Failure {
  const { rank, node, exitCode } = pod;
  return {
    reason: truncate(reason, MAX_REASON),
    message: truncate(message, MAX_MESSAGE),
    disruption: false,
    ruleReasons: [reason, pod.termination?.code, pod.reason].filter((word) => word !== undefined),
    ...(exitCode !== undefined && { exitCode }),
    ...(rank !== undefined && { rank }),
    ...(node !== undefined && { node }),
  };
}

function reasonOfExit(code: number | undefined): string {
  switch (code) {
    case ExitCode.refused:
      return Reason.inputRefused;
    case ExitCode.gateFailed:
      return Reason.gateFailed;
    case ExitCode.peerLost:
      return Reason.peerLost;
    case ExitCode.preempted:
      return Reason.preempted;
    default:
      // 128 + the number of the signal, as shells and container runtimes report it.
      return code !== undefined && code > 128 ? Reason.killed : Reason.exited;
  }
}

export type FailureAction = FailurePolicy['rules'][number]['action'];

const RENDEZVOUS_TIMEOUT: ErrorCode = 'RendezvousTimeout';

/**
 * The action for a failure, and the name of the rule that decided. No rule applies to a disruption: it never counts.
 */
export function actionFor(
  failure: Failure,
  policy: FailurePolicy,
): { action: FailureAction; rule?: string | undefined } {
  if (failure.disruption) return { action: 'RestartWithoutCounting' };
  const rule = policy.rules.find(
    ({ exitCodes, reasons }) =>
      (exitCodes === undefined || (failure.exitCode !== undefined && exitCodes.includes(failure.exitCode))) &&
      (reasons === undefined || reasons.some((reason) => failure.ruleReasons.includes(reason))),
  );
  if (rule) return { action: rule.action, rule: rule.name };
  switch (failure.exitCode) {
    case ExitCode.refused:
      // A process reports a rendezvous that timed out as refused input. In a gang a rank may only have started too
      // late.
      return { action: failure.ruleReasons.includes(RENDEZVOUS_TIMEOUT) ? 'Restart' : 'FailJob' };
    case ExitCode.gateFailed:
      return { action: 'FailJob' };
    case ExitCode.preempted:
      return { action: 'RestartWithoutCounting' };
    default:
      return { action: 'Restart' };
  }
}
