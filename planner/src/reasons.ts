/** All types and reasons of conditions and events. docs/runbook.md has an entry for each reason. */

export const ConditionType = {
  /** kstatus: the job is as its spec wants it. A running gang counts, so that `helm --wait` does not wait for days. */
  ready: 'Ready',
  /** kstatus: the operator works towards that state; absent otherwise. */
  reconciling: 'Reconciling',
  /** kstatus: the job will not reach that state without a change by the user; absent otherwise. */
  stalled: 'Stalled',
  /** Every pod is scheduled. */
  admitted: 'Admitted',
  podsReady: 'PodsReady',
  /** All ranks have started. */
  running: 'Running',
  /** From the decision to restart until all ranks have started again and are ready. */
  restarting: 'Restarting',
  suspended: 'Suspended',
  succeeded: 'Succeeded',
  failed: 'Failed',
  quantizationSucceeded: 'QuantizationSucceeded',
} as const;
export type ConditionType = (typeof ConditionType)[keyof typeof ConditionType];

export const Reason = {
  // The state of a job.
  podsPending: 'PodsPending',
  podsNotReady: 'PodsNotReady',
  podsReady: 'PodsReady',
  running: 'Running',
  unschedulable: 'Unschedulable',
  scheduled: 'Scheduled',
  /** Pods of an older attempt have not ended yet, so no pod of the next one is created. */
  stopping: 'Stopping',
  /** Another job writes to the same folder. Two jobs must never write the same checkpoints. */
  outputInUse: 'OutputInUse',
  /** Kueue has not admitted the job yet: queue.ts. */
  queued: 'Queued',
  /** Kueue has taken the quota back, and the gang is being stopped. */
  queueEvicted: 'QueueEvicted',
  /** The next attempt waits: restarts.ts. */
  backoff: 'Backoff',
  suspended: 'Suspended',
  suspending: 'Suspending',
  resumed: 'Resumed',
  quantizing: 'Quantizing',
  succeeded: 'Succeeded',
  recovered: 'Recovered',
  over: 'Over',

  // Why a job is blocked until a user changes something.
  invalidSpec: 'InvalidSpec',
  /** gang.mode is Native, and the cluster serves no PodGroup. */
  gangUnavailable: 'GangUnavailable',
  /** spec.queue names a queue, and the cluster serves no Workload, or an object of Kueue's cannot be read. */
  queueUnavailable: 'QueueUnavailable',
  /** Kueue's label names a queue, and the spec none. */
  queueNotSet: 'QueueNotSet',
  /** An object of another owner has the name of a child. */
  nameTaken: 'NameTaken',
  /** A ResourceQuota refuses a child. It ends by itself, when other objects of the namespace do. */
  quotaExceeded: 'QuotaExceeded',
  /** The API server refused to create a child. */
  childRefused: 'ChildRefused',
  /** An admission webhook that must be asked about a child does not answer. */
  webhookFailed: 'WebhookFailed',
  /** The API server has not managed to create a child for some time. */
  createFailed: 'CreateFailed',

  // Why an attempt ended. If the process reports an ErrorCode, that code is the reason.
  exited: 'ProcessFailed',
  killed: 'ProcessKilled',
  inputRefused: 'InputRefused',
  gateFailed: 'GateFailed',
  peerLost: 'PeerLost',
  fencedOff: 'FencedOff',
  /** An init container of the user's pod template failed. */
  containerFailed: 'ContainerFailed',
  disrupted: 'Disrupted',
  podDeleted: 'PodDeleted',
  podLost: 'PodLost',
  nodeLost: 'NodeLost',
  /** The gang's PodGroup was deleted before all its pods were scheduled. */
  groupDeleted: 'PodGroupDeleted',
  /** The scheduler refuses the gang: the priority of its pods is not that of its PodGroup. */
  priorityMismatch: 'PriorityMismatch',
  progressDeadline: 'ProgressDeadlineExceeded',
  specChanged: 'SpecChanged',
  /** Of a gang that was started again in its pods, a trainer was not. */
  notRestarted: 'NotRestarted',
  /** An elastic gang goes on with fewer pods. */
  scaledDown: 'ScaledDown',
  /** An elastic gang goes on with more pods. */
  scaledUp: 'ScaledUp',

  // Why a job failed as a whole.
  maxRestarts: 'MaxRestartsExceeded',
  activeDeadline: 'ActiveDeadlineExceeded',
  pendingDeadline: 'PendingDeadlineExceeded',
  quantizationFailed: 'QuantizationFailed',

  // Events and actions.
  attemptStarted: 'AttemptStarted',
  /** A trainer found a checkpoint damaged, and uses the one before it. */
  checkpointSetAside: 'CheckpointSetAside',
  attemptOver: 'AttemptOver',
  /** The job that an object belonged to was deleted, and another one has its name. */
  jobDeleted: 'JobDeleted',
  /** A gang that did not get all its pods has let go of those that it had. */
  gangReleased: 'GangReleased',
  /** Rank 0 answered a request for its progress with something else. */
  invalidProgress: 'InvalidProgress',
  /** The operator has failed for some time to act on the job, and no condition says why. */
  reconcileFailed: 'ReconcileFailed',
  expired: 'TimeToLiveOver',
  notWanted: 'NotWanted',
  /** A Workload that MultiKueue has made. */
  adopted: 'Adopted',
} as const;
export type Reason = (typeof Reason)[keyof typeof Reason];

/** Longest reason, in characters: the API server refuses an event (events.k8s.io/v1) with a longer one. */
export const MAX_REASON = 128;

/**
 * Longest message of a condition or an event, in characters. The status of a job should stay small: lists hold many
 * jobs.
 */
export const MAX_MESSAGE = 2000;
