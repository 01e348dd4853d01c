/** Every word and limit that a status or an event may show, in one place: the runbook has an entry for each reason. */

export const ConditionType = {
  /** kstatus: the job is where it should be. A training of days must not hold `helm --wait`, so a gang that runs is. */
  ready: 'Ready',
  /** kstatus: work is being done to get there; absent otherwise. */
  reconciling: 'Reconciling',
  /** kstatus: it will not get there by itself; absent otherwise. */
  stalled: 'Stalled',
  /** Every pod has a place to run. */
  admitted: 'Admitted',
  podsReady: 'PodsReady',
  /** All ranks are there and train. */
  running: 'Running',
  /** From the decision to restart until all ranks of the new attempt are there. */
  restarting: 'Restarting',
  suspended: 'Suspended',
  succeeded: 'Succeeded',
  failed: 'Failed',
  quantizationSucceeded: 'QuantizationSucceeded',
} as const;
export type ConditionType = (typeof ConditionType)[keyof typeof ConditionType];

export const Reason = {
  // Where a job is.
  podsPending: 'PodsPending',
  podsNotReady: 'PodsNotReady',
  podsReady: 'PodsReady',
  running: 'Running',
  unschedulable: 'Unschedulable',
  scheduled: 'Scheduled',
  /** Pods of an older attempt have not ended yet, so none of the next may be made. */
  stopping: 'Stopping',
  /** Another job writes to the same folder: two must never write the same checkpoints. */
  outputInUse: 'OutputInUse',
  /** The next attempt waits, so that what fails at once does not fail all the time. */
  backoff: 'Backoff',
  suspended: 'Suspended',
  suspending: 'Suspending',
  resumed: 'Resumed',
  quantizing: 'Quantizing',
  succeeded: 'Succeeded',
  recovered: 'Recovered',
  over: 'Over',

  // Why a job cannot go on until someone changes something.
  invalidSpec: 'InvalidSpec',
  /** gang.mode is Native, and the cluster serves no PodGroup. */
  gangUnavailable: 'GangUnavailable',
  /** An object that somebody else made has a name that a child must have. */
  nameTaken: 'NameTaken',
  /** The API server refused a child. */
  childRefused: 'ChildRefused',

  // Why an attempt ended, where its process said no better (see ErrorCode).
  exited: 'ProcessFailed',
  killed: 'ProcessKilled',
  inputRefused: 'InputRefused',
  gateFailed: 'GateFailed',
  peerLost: 'PeerLost',
  preempted: 'Preempted',
  disrupted: 'Disrupted',
  podDeleted: 'PodDeleted',
  podLost: 'PodLost',
  nodeLost: 'NodeLost',
  /** The gang's PodGroup was deleted while its pods still waited for their places. */
  groupDeleted: 'PodGroupDeleted',
  progressDeadline: 'ProgressDeadlineExceeded',
  specChanged: 'SpecChanged',

  // Why a job failed as a whole.
  maxRestarts: 'MaxRestartsExceeded',
  activeDeadline: 'ActiveDeadlineExceeded',
  pendingDeadline: 'PendingDeadlineExceeded',
  quantizationFailed: 'QuantizationFailed',

  // Events and actions.
  attemptStarted: 'AttemptStarted',
  attemptOver: 'AttemptOver',
  expired: 'TimeToLiveOver',
  notWanted: 'NotWanted',
} as const;
export type Reason = (typeof Reason)[keyof typeof Reason];

/** Longest message of a condition or an event: enough for a sentence and what a process said, small enough for a list of jobs. */
export const MAX_MESSAGE = 2000;
