/**
 * Why an attempt is over, and what to do about it.
 *
 * One rank's failure ends the attempt for all: the others wait in a collective until they time out and leave with "peer
 * lost". So blame goes to the rank that failed first with another code; then to a rank whose pod was taken away; and only
 * when there is neither, to whoever lost a peer.
 */
import { type ErrorCode, ExitCode, type FailurePolicy } from '@facetrain/api';
import { creationIsOver, isUnknown, type JobView, outcomeOf } from './attempt.ts';
import { podName } from './names.ts';
import type { ObservedPod } from './observed.ts';
import { truncate } from './plain-data.ts';
import { MAX_MESSAGE, Reason } from './reasons.ts';
import { secondsSince } from './time.ts';

export interface Failure {
  reason: string;
  message: string;
  /** The cluster took the pod away, which is no fault of the job. */
  disruption: boolean;
  /** What a rule's `reasons` may match. */
  ruleReasons: string[];
  exitCode?: number;
  rank?: number;
  node?: string;
}

/** How long to wait for the culprit's own end to be seen, when all that is seen is that others lost it. */
export const ROOT_CAUSE_WAIT_SECONDS = 2;

/** What ended the current attempt; null while nothing has. */
export function findFailure(view: JobView): Failure | null {
  const failed = view.ranks
    .filter((pod) => pod !== undefined && outcomeOf(pod) === 'failed')
    .sort(byFinishTime) as ObservedPod[];
  const culprit = failed.find((pod) => !exitedWithPeerLost(pod));
  if (culprit) return processFailure(culprit);

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

  const [victim] = failed;
  return victim === undefined || mayHaveRootCause(victim, view) ? null : processFailure(victim);
}

function mayHaveRootCause(victim: ObservedPod, view: JobView): boolean {
  if (victim.finishedAt === undefined || view.ranks.every((pod) => pod && outcomeOf(pod) !== null)) return false;
  const age = secondsSince(victim.finishedAt, view.now);
  return age >= 0 && age < ROOT_CAUSE_WAIT_SECONDS;
}

function byFinishTime(a: ObservedPod | undefined, b: ObservedPod | undefined): number {
  const end = (pod: ObservedPod | undefined) => (pod?.finishedAt === undefined ? Infinity : Date.parse(pod.finishedAt));
  return end(a) === end(b) ? a!.rank - b!.rank : end(a) - end(b);
}

const exitedWithPeerLost = (pod: ObservedPod): boolean => pod.exitCode === ExitCode.peerLost && !pod.disrupted;

/** Reasons by which a kubelet says that it ended a pod for the node's sake, where it sets no DisruptionTarget condition. */
const DISRUPTION_REASONS = new Set(['Evicted', 'Preempting', 'NodeLost', 'NodeShutdown', 'Shutdown', 'Terminated']);

function processFailure(pod: ObservedPod): Failure {
  const disruption = pod.disrupted || DISRUPTION_REASONS.has(pod.reason ?? '');
  // "Error" is what Kubernetes says of every exit code but 0.
  const cause = pod.reason === 'Error' ? undefined : pod.reason;
  const reason = pod.termination?.code ?? cause ?? (pod.disrupted ? Reason.disrupted : reasonOfExit(pod.exitCode));
  const said = pod.termination?.message;
  const left = pod.exitCode === undefined ? 'failed' : `left with exit code ${pod.exitCode}`;
  const message = `rank ${pod.rank} ${left}${cause ? ` (${cause})` : ''}${pod.node ? ` on ${pod.node}` : ''}${said ? `: ${said}` : ''}`;
  return { ...podFailure(reason, message, pod), disruption };
}

function podFailure(reason: string, message: string, pod: Partial<ObservedPod>): Failure {
  const { rank, node, exitCode } = pod;
  return {
    reason: truncate(reason, 128),
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
      // A shell's convention: 128 + the number of the signal.
      return code !== undefined && code > 128 ? Reason.killed : Reason.exited;
  }
}

export type FailureAction = FailurePolicy['rules'][number]['action'];

const RENDEZVOUS_TIMEOUT: ErrorCode = 'RendezvousTimeout';

/** What the policy wants done, and the name of the rule that says so. A disruption comes before all rules: it never counts. */
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
      // To one process an address that nobody answers at is a wrong input; in a gang a peer may merely have come too late.
      return { action: failure.ruleReasons.includes(RENDEZVOUS_TIMEOUT) ? 'Restart' : 'FailJob' };
    case ExitCode.gateFailed:
      return { action: 'FailJob' };
    case ExitCode.preempted:
      return { action: 'RestartWithoutCounting' };
    default:
      return { action: 'Restart' };
  }
}
