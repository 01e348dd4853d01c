/**
 * Why an attempt has failed, and what the failure policy does about it.
 *
 * The failure of one rank ends the attempt: the other ranks wait in a collective until it times out, and exit with the
 * code "peer lost"; or one rank got SIGTERM, and all stop together and exit with 143. The root cause is therefore
 * looked for in this order: the rank that failed first with another exit code; a rank whose pod was deleted or whose
 * node is lost; a rank that SIGTERM stopped though the cluster gives no cause; at last a rank that lost a peer.
 */
import { type ErrorCode, ExitCode, type FailurePolicy } from '@facetrain/api';
import { creationIsOver, isAlive, isUnknown, type JobView, outcomeOf } from './attempt.ts';
import { secondsToPodEnd } from './cleanup.ts';
import { defaultAction, type FailureAction, isRejectedForPlace } from './endings.ts';
import { podName } from './names.ts';
import type { ObservedPod } from './observed.ts';
import { truncate } from './plain-data.ts';
import { MAX_MESSAGE, MAX_REASON, Reason } from './reasons.ts';
import { KILLED } from './starts.ts';
import { secondsSince } from './time.ts';

/** The failure of an attempt, before the failure policy is applied. */
export interface Failure {
  reason: string;
  message: string;
  /** Somebody else ended the pod (eviction, preemption, deletion, a lost node): DISRUPTIONS in endings.ts. */
  disruption: boolean;
  /** Words that `reasons` of a rule in the failure policy can match. */
  ruleReasons: string[];
  /** The error code that our program reported. */
  code?: string;
  /** Of our program. Exit codes of other containers mean something else, so no rule can match them. */
  exitCode?: number;
  /** The training step at which our program reported NotANumber. */
  step?: number;
  /** The first of its pod, if the pod has several and does not say which. */
  rank?: number;
  node?: string;
}

/** Seconds to wait for the root cause, if so far only ranks that lost a peer have been observed. */
export const ROOT_CAUSE_WAIT_SECONDS = 2;

/**
 * Seconds to wait for the root cause, if so far only ranks that SIGTERM stopped have been observed, or the container of
 * a rank is gone. The kubelet sets DisruptionTarget and the reason once all containers of a pod have ended, and other
 * ranks of the gang may end before that.
 */
const POD_CAUSE_WAIT_SECONDS = 30;

/**
 * Seconds after the end of a program by SIGTERM in which the kubelet's Event may arrive that says why it sent the
 * signal (kill-causes.ts of the operator). SIGKILL is not waited for: where a kubelet sends it, SIGTERM and the Event
 * came a grace period before.
 */
export const KILL_EVENT_WAIT_SECONDS = 5;

/** The failure that ends the current attempt; null if there is none, or if its cause is not known yet. */
export function findFailure(view: JobView): Failure | null {
  const failed = view.ranks
    .filter((pod) => pod !== undefined && outcomeOf(pod) === 'failed' && !followsRestart(pod, view))
    .sort(byFinishTime) as ObservedPod[];
  const rootCause = failed.find((pod) => !followsAnotherRank(pod));
  if (rootCause) return explanationMayFollow(rootCause, view) ? null : processFailure(rootCause, view);

  for (const [rank, pod] of view.ranks.entries()) {
    if (pod === undefined) {
      if (creationIsOver(view))
        return disruptionOf(
          Reason.podLost,
          `pod ${podName(view.kind, view.identity, view.attempt, rank)} is gone`,
          { rank },
          view,
        );
    } else if (pod.deleting && outcomeOf(pod) !== 'succeeded') {
      const words = pod.message === undefined ? '' : `: ${pod.message}`;
      return disruptionOf(deletionReason(pod), `pod ${pod.name} is being deleted${words}`, pod, view);
    } else if (pod.lostNode !== undefined && !view.toleratesNodeLoss && outcomeOf(pod) === null) {
      return disruptionOf(Reason.nodeLost, `pod ${pod.name} is lost: ${pod.lostNode}`, pod, view);
    } else if (failed.length > 0 && isUnknown(pod)) {
      return disruptionOf(
        Reason.nodeLost,
        `pod ${pod.name} is in phase ${pod.phase}: its node does not answer, and its peers have lost it`,
        pod,
        view,
      );
    }
  }

  const last = failed.find(isStopped) ?? failed[0];
  return last === undefined || rootCauseMayFollow(last, view) ? null : processFailure(last, view);
}

/** Whether a pod's exit code says only that the gang ended: another rank, or the cluster, may have the cause. */
const followsAnotherRank = (pod: ObservedPod): boolean =>
  !pod.disrupted && !pod.deleting && !wentWithNode(pod) && (pod.exitCode === ExitCode.peerLost || isStopped(pod));

/**
 * Whether the program ended with its gang, in a restart that is counted already: it has not been started again since.
 */
const followsRestart = (pod: ObservedPod, { restartsInPlace }: JobView): boolean =>
  pod.containerRestarts !== undefined &&
  pod.containerRestarts.count < restartsInPlace &&
  !pod.disrupted &&
  !pod.deleting &&
  pod.lostNode === undefined &&
  (pod.exitCode === ExitCode.peerLost || (pod.exitCode === KILLED && isUnexplainedSignal(pod)));

/**
 * SIGTERM ended the program, for a cause that is not known. Kubernetes reports "Error" for every exit code but 0; any
 * other reason is a cause, and so are the words of the kubelet (kill-causes.ts of the operator).
 */
const isStopped = (pod: ObservedPod): boolean => pod.exitCode === ExitCode.preempted && isUnexplainedSignal(pod);

const wentWithNode = (pod: ObservedPod): boolean => pod.lostNode !== undefined && isUnexplainedSignal(pod);

/**
 * SIGTERM or SIGKILL ended the program, and no word says why: a machine that shuts down sends both, and may be gone
 * before its kubelet has said so.
 */
const isUnexplainedSignal = ({ exitCode, reason = 'Error', termination, message }: ObservedPod): boolean =>
  (exitCode === ExitCode.preempted || exitCode === KILLED) &&
  reason === 'Error' &&
  wordsOf(termination) === undefined &&
  message === undefined;

/**
 * What our program says about its failure. That a signal ended one of a pod's ranks names the rank (rank-processes.ts
 * of trainer-image), and no cause: the exit code says it as well, and the cluster may know more.
 */
const wordsOf = (termination: ObservedPod['termination']): ObservedPod['termination'] =>
  termination?.code === Reason.killed ? undefined : termination;

/**
 * Whether the pod's final status may still give another cause. The kubelet reports the end of a container before the
 * pod's reason (Evicted) and DisruptionTarget. Only a signal can have such a cause; and a pod that goes on has none.
 */
const explanationMayFollow = (pod: ObservedPod, { now }: JobView): boolean =>
  (pod.exitCode ?? 0) > 128 && !pod.restarted && secondsToPodEnd(pod, now) !== null;

/** Whether another rank, or the final status of this one, may turn out to be the root cause. */
function rootCauseMayFollow(pod: ObservedPod, view: JobView): boolean {
  const stopped = isStopped(pod);
  const hasEnded = (other: ObservedPod | undefined) =>
    other !== undefined && (stopped ? !isAlive(other) : outcomeOf(other) !== null);
  if (pod.finishedAt === undefined) return false;
  const age = secondsSince(pod.finishedAt, view.now);
  const podEnds = stopped || view.ranks.some((other) => other?.containerRestarts?.isGone);
  const wait = podEnds ? POD_CAUSE_WAIT_SECONDS : ROOT_CAUSE_WAIT_SECONDS;
  const waitWhenAllEnded = stopped ? KILL_EVENT_WAIT_SECONDS : 0;
  return age >= 0 && age < (view.ranks.every(hasEnded) ? waitWhenAllEnded : wait);
}

function byFinishTime(a: ObservedPod | undefined, b: ObservedPod | undefined): number {
  const end = (pod: ObservedPod | undefined) => (pod?.finishedAt === undefined ? Infinity : Date.parse(pod.finishedAt));
  return end(a) === end(b) ? a!.rank - b!.rank : end(a) - end(b);
}

function processFailure(pod: ObservedPod, view: JobView): Failure {
  const { foreignContainer: foreign, termination } = pod;
  const reported = wordsOf(termination);
  const wasRejected = pod.rejected === true && isRejectedForPlace(pod.reason);
  const lostNode = wentWithNode(pod) ? pod.lostNode : undefined;
  const disruption = pod.disrupted || pod.deleting || wasRejected || lostNode !== undefined;
  const cause = lostNode !== undefined ? Reason.nodeLost : causeOf(foreign?.reason ?? pod.reason);
  const reason =
    reported?.code ??
    cause ??
    (disruption ? deletionReason(pod) : foreign ? Reason.containerFailed : reasonOfExit(pod.exitCode));
  const container = foreign?.name ?? pod.container;
  const exitCode = foreign?.exitCode ?? pod.exitCode;
  const subject = `${subjectOf(pod, view)}${container === undefined ? '' : `: container ${container}`}`;
  const ending = exitCode === undefined ? 'failed' : `left with exit code ${exitCode}`;
  const where = `${cause ? ` (${cause})` : ''}${pod.node ? ` on ${pod.node}` : ''}`;
  const words = reported?.message ?? foreign?.message ?? pod.message ?? lostNode ?? termination?.message;
  const step = reason === NOT_A_NUMBER ? /^step (\d{1,15}):/.exec(termination?.message ?? '')?.[1] : undefined;
  return {
    ...podFailure(reason, `${subject} ${ending}${where}${words ? `: ${words}` : ''}`, pod, view),
    disruption,
    ...(step !== undefined && { step: Number(step) }),
  };
}

type RankedPod = Pick<ObservedPod, 'rank'> & { termination?: ObservedPod['termination'] | undefined };

/** The ranks of a pod, and which of them its program names. It may write any number: only one of the pod counts. */
function ranksOf({ rank: number, termination }: RankedPod, { spec }: JobView) {
  const count = spec.trainers?.ranksPerPod ?? 1;
  const first = number * count;
  const last = first + count - 1;
  const { rank } = termination ?? {};
  return { first, last, named: rank !== undefined && rank >= first && rank <= last ? rank : undefined };
}

/** The rank of a failure in this pod: the one that its program names, else the first of the pod. */
export function failedRank(pod: RankedPod, view: JobView): number {
  const { first, named } = ranksOf(pod, view);
  return named ?? first;
}

/** What failed in a pod with several ranks: the one that its program names, else any of them. */
function subjectOf(pod: ObservedPod, view: JobView): string {
  const { first, last, named } = ranksOf(pod, view);
  return named !== undefined || first === last ? `rank ${named ?? first}` : `ranks ${first}-${last}`;
}

/** A reason of Kubernetes that says more than "Error", which it reports for every exit code but 0. */
const causeOf = (reason: string | undefined): string | undefined => (reason === 'Error' ? undefined : reason);

const deletionReason = (pod: ObservedPod): string =>
  causeOf(pod.reason) ?? (pod.disrupted ? Reason.disrupted : Reason.podDeleted);

const disruptionOf = (reason: string, message: string, pod: Partial<ObservedPod>, view: JobView): Failure => ({
  ...podFailure(reason, message, pod, view),
  disruption: true,
});

function podFailure(reason: string, message: string, pod: Partial<ObservedPod>, view: JobView): Failure {
  const { rank, node, exitCode, termination } = pod;
  const words = [reason, termination?.code, pod.reason, pod.foreignContainer?.reason];
  if (pod.disrupted) words.push(Reason.disrupted);
  return {
    reason: truncate(reason, MAX_REASON),
    message: truncate(message, MAX_MESSAGE),
    disruption: false,
    ruleReasons: words.filter((word) => word !== undefined),
    ...(termination && { code: termination.code }),
    ...(exitCode !== undefined && { exitCode }),
    ...(rank !== undefined && { rank: failedRank({ rank, termination }, view) }),
    ...(node !== undefined && { node }),
  };
}

const NOT_A_NUMBER: ErrorCode = 'NotANumber';

function reasonOfExit(code: number | undefined): string {
  switch (code) {
    case ExitCode.refused:
      return Reason.inputRefused;
    case ExitCode.gateFailed:
      return Reason.gateFailed;
    case ExitCode.peerLost:
      return Reason.peerLost;
    case ExitCode.fencedOff:
      return Reason.fencedOff;
    default:
      // 128 + the number of the signal, as shells and container runtimes report it.
      return code !== undefined && code > 128 ? Reason.killed : Reason.exited;
  }
}

/**
 * The action for a failure, and the name of the rule that decided. Rules come first, also for disruptions; then
 * endings.ts decides.
 */
export function actionFor(
  failure: Failure,
  policy: FailurePolicy,
): { action: FailureAction; rule?: string | undefined; isDefault?: true } {
  const rule = policy.rules.find(
    ({ exitCodes, reasons }) =>
      (exitCodes === undefined || (failure.exitCode !== undefined && exitCodes.includes(failure.exitCode))) &&
      (reasons === undefined || reasons.some((reason) => failure.ruleReasons.includes(reason))),
  );
  return rule ? { action: rule.action, rule: rule.name } : { action: defaultAction(failure), isDefault: true };
}
