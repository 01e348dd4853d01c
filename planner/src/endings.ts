/**
 * How an attempt can end, and what the failure policy does about it unless one of its rules says otherwise. This is the
 * only place that says so: `defaultAction` reads it, and the tables of docs/runbook.md and of the reference are
 * generated from it.
 *
 * Only what somebody else did to a pod is a disruption, which is not counted: the cluster ended it (the condition
 * DisruptionTarget), its node was lost, somebody deleted it, or its node had no place for it. All else counts, so that
 * a job which fails by itself cannot restart for ever.
 */
import { type ErrorCode, ExitCode, type FailurePolicy } from '@facetrain/api';
import { Reason } from './reasons.ts';

export type FailureAction = FailurePolicy['rules'][number]['action'];

/** A row of the table. */
export interface Ending {
  /** What happened, for the documentation. */
  what: string;
  /** Reasons that the status may give for it; "…" stands for any end of a word. */
  reasons: readonly string[];
  action: FailureAction;
  /** What else happens, for the documentation. */
  remark?: string;
}

/** What the table needs to know of a failure; the fields are those of `Failure` in failure.ts. */
interface Ended {
  disruption: boolean;
  code?: string;
  exitCode?: number;
  step?: number;
}

/** Endings that others caused (`Failure.disruption`). */
export const DISRUPTIONS: readonly Ending[] = [
  {
    what:
      'the pod has the condition `DisruptionTarget`: preempted by the scheduler or the kubelet, drained, evicted by ' +
      'the API or by a taint, evicted because its node ran out of memory or disk, or its node was shut down',
    reasons: [Reason.disrupted, 'Evicted', 'Preempting', 'Terminated'],
    action: 'RestartWithoutCounting',
  },
  {
    what:
      'the node was deleted, was tainted out-of-service, does not answer while the gang stands still, or has not ' +
      'answered for `failurePolicy.nodeLostSeconds`; also if SIGTERM or SIGKILL had ended the process before, and ' +
      'nothing else says why',
    reasons: [Reason.nodeLost],
    action: 'RestartWithoutCounting',
  },
  {
    what: 'somebody deleted the pod; it is being deleted, or no longer exists',
    reasons: [Reason.podDeleted, Reason.podLost],
    action: 'RestartWithoutCounting',
  },
  {
    what: 'the gang’s PodGroup was deleted before all pods had a node',
    reasons: [Reason.groupDeleted],
    action: 'RestartWithoutCounting',
  },
  {
    what:
      'the kubelet rejected the pod before any container started, because the node had no place for it: others were ' +
      'faster, or the node was changed or shut down (“Pod was rejected: …”)',
    reasons: [
      'OutOf…',
      'NodeAffinity',
      'TaintToleration',
      'TopologyAffinityError',
      'UnexpectedAdmissionError',
      'NodeShutdown',
      'Evicted',
    ],
    action: 'RestartWithoutCounting',
  },
];

/** Error codes in a termination message whose action is not that of their exit code. */
export const REPORTED: readonly (Ending & { code: ErrorCode; onlyInTraining?: true })[] = [
  {
    code: 'RendezvousTimeout',
    what: 'the ranks did not meet in time: one may only have started late',
    reasons: ['RendezvousTimeout'],
    action: 'Restart',
  },
  {
    code: 'NotANumber',
    onlyInTraining: true,
    what: 'in a training step the loss or a gradient is not finite',
    reasons: ['NotANumber'],
    action: 'Restart',
    remark:
      'A second time at the same step the job fails, because a restart repeats the same steps. In an evaluation or ' +
      'in the quantizer it fails at once',
  },
];

/** Exit codes of the container "facetrain" (or of one that fetches data) with an action of their own. */
export const EXITS: readonly (Ending & { exitCode: ExitCode })[] = [
  {
    exitCode: ExitCode.refused,
    what: 'the program refused its input, its configuration or its environment',
    reasons: ['the error code', Reason.inputRefused],
    action: 'FailJob',
  },
  { exitCode: ExitCode.gateFailed, what: 'the INT7 model missed its gate', reasons: ['GateFailed'], action: 'FailJob' },
  {
    exitCode: ExitCode.peerLost,
    what: 'a rank lost another one, and no cause was found',
    reasons: [Reason.peerLost],
    action: 'Restart',
  },
  {
    exitCode: ExitCode.fencedOff,
    what:
      'another writer has claimed the job’s checkpoints or output: a late pod of a deleted job, which the restart ' +
      'fences off, or another job',
    reasons: ['FencedOff'],
    action: 'Restart',
  },
];

/** Everything else. */
export const OTHERS: readonly Ending[] = [
  {
    what: 'any other exit code',
    reasons: [Reason.exited, 'Internal', 'StartError'],
    action: 'Restart',
  },
  {
    what:
      'a signal that the cluster does not explain, SIGTERM (143) among them: a liveness probe that failed, or the ' +
      'kernel',
    reasons: [Reason.killed, 'OOMKilled'],
    action: 'Restart',
  },
  {
    what: 'evicted without `DisruptionTarget`: the pod was over a limit of its own',
    reasons: ['Evicted'],
    action: 'Restart',
  },
  {
    what: 'an init container of the pod template failed, whatever its exit code',
    reasons: [Reason.containerFailed, 'OOMKilled', 'StartError'],
    action: 'Restart',
  },
  {
    what: 'the kubelet rejected the pod, and not for lack of place: the template asks for what the node cannot do',
    reasons: ['PodOSNotSupported', 'SysctlForbidden', 'AppArmor', '…'],
    action: 'Restart',
  },
  {
    what: 'the pods have another priority than their PodGroup',
    reasons: [Reason.priorityMismatch],
    action: 'Restart',
  },
  { what: 'no step for `progressDeadlineSeconds`', reasons: [Reason.progressDeadline], action: 'Restart' },
];

/** What happens to a failure that no rule of the policy matches. */
export function defaultAction({ disruption, code, exitCode, step }: Ended): FailureAction {
  if (disruption) return 'RestartWithoutCounting';
  const row =
    REPORTED.find((ending) => ending.code === code && (step !== undefined || !ending.onlyInTraining)) ??
    EXITS.find((ending) => ending.exitCode === exitCode);
  return row?.action ?? 'Restart';
}

/**
 * Reasons by which a kubelet rejects a pod for what its node has at the moment (Kubernetes'
 * pkg/kubelet/lifecycle/predicate.go, and the admission by the managers of eviction, of shutdown and of topology: what
 * is free on a node may lie on other NUMA nodes than the policy wants). Other reasons would come again on every node of
 * the kind.
 */
const NO_PLACE =
  /^(OutOf.+|NodeAffinity|TaintToleration|TopologyAffinityError|UnexpectedAdmissionError|NodeShutdown|Evicted)$/;

/** @param reason of a pod that the kubelet rejected */
export const isRejectedForPlace = (reason: string | undefined): boolean => NO_PLACE.test(reason ?? '');
