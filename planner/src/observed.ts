/** Input of the planners: a job, and what exists for it. Executors collect it and draw no conclusions from it. */
import type {
  Condition,
  EvaluationResult,
  FaceTrainJob,
  FaceTrainJobStatus,
  GangMode,
  QuantizeJob,
  QuantizeJobStatus,
  TerminationMessage,
  TerminationResult,
} from '@facetrain/api';
import type { ChildObject } from './objects.ts';

/** Metadata of a job, as the API server (or the executor that starts processes) has set it. */
export interface JobIdentity {
  name: string;
  namespace: string;
  uid: string;
  generation: number;
  deletionTimestamp?: string | undefined;
}

/** How a program ended. */
export interface ProgramEnd {
  finishedAt?: string;
  /** After a signal: 128 + its number. */
  exitCode?: number;
  /** The reason that Kubernetes reports for a failed container or pod: OOMKilled, Evicted, ... */
  reason?: string;
  /** Kubernetes' words about the end of the pod, or of its container. */
  message?: string;
  /** The termination message of a program that failed (read-termination.ts). */
  termination?: TerminationMessage;
}

/** What the kubelet starts again in a pod: the container "facetrain", by the rules of the pod as it is stored. */
export interface ContainerRestarts {
  /** After these exit codes. */
  exitCodes: number[];
  /** How often it has done so. */
  count: number;
  /** How the program before the present one ended. */
  lastEnd?: ProgramEnd;
  /** The container runs. If it neither runs nor has ended, nor is gone, the kubelet is about to start it. */
  isRunning: boolean;
  /**
   * The kubelet finds nothing of the container that ran: it ends the pod, or somebody removed the container. `count`
   * and `lastEnd` may say of that what they say of a restart.
   */
  isGone?: true;
}

/** The last observed state of a pod, which a kubelet runs, or the executor that starts processes. */
export interface ObservedPod extends ProgramEnd {
  name: string;
  uid: string;
  attempt: number;
  /** Its number in the gang: its rank, unless a pod has several (trainers.ranksPerPod). */
  rank: number;
  /** Unknown: its node does not answer. A word that we do not know is treated like Unknown: alive, but not running. */
  phase: 'Pending' | 'Running' | 'Succeeded' | 'Failed' | 'Unknown' | (string & {});
  ready: boolean;
  /** It has a deletion timestamp. Until the object is gone its process may still run. */
  deleting: boolean;
  node?: string;
  createdAt: string;
  /** Absent: the kubelet starts nothing again in this pod. */
  containerRestarts?: ContainerRestarts;
  /** How its program ended is how the one before it did: the kubelet has started it again. Only planners set it. */
  restarted?: true;
  /** The init container of ours that `exitCode` is of, instead of the container "facetrain": one that fetches data. */
  container?: string;
  /**
   * The pod has failed because this init container of the user's pod template failed. Its exit code means nothing to
   * us.
   */
  foreignContainer?: { name: string; exitCode: number; reason?: string; message?: string };
  /** There is no pod: the status remembers that its rank succeeded. Only planners set it (`viewOf`). */
  removed?: true;
  /** The kubelet rejected the pod before it started any container. */
  rejected?: true;
  /** The termination message of a program that ended without an error. */
  result?: { progress?: ObservedProgress; artifact?: NonNullable<TerminationResult['artifact']> };
  /** The condition DisruptionTarget is True: preempted, drained, evicted. */
  disrupted: boolean;
  /** Why its node is lost: it was deleted, or a person has declared it out of service. */
  lostNode?: string;
  /** Its node does not answer: why, and since when. `viewOf` decides when that makes it a lost node. */
  silentNode?: { reason: string; since: string };
  /** Why the pod does not start: Unschedulable, ImagePullBackOff, FailedMount, ... with the message. */
  waiting?: { reason: string; message: string };
  /** The priority that the API server's admission gave it. */
  priority?: number | undefined;
  /** In whose PodGroup it is, which never changes; absent: the executor knows none. */
  podGroup?: PodGroupReader | 'None';
  /** It holds a place for a pod that an elastic gang lacks, and trains nothing. */
  placeholder?: true;
  /** Of an elastic gang: with how many pods its pod was started (the label facetrain.dev/gang-size). */
  gangSize?: number;
  /** The pod's label facetrain.dev/spec-digest. */
  specDigest?: string;
}

/** The scheduler that reads a PodGroup, by the words of gang.mode; Native: kube-scheduler. */
export type PodGroupReader = Extract<GangMode, 'Native' | 'KAI' | 'Volcano'>;

/** An object with a name that the planner gives to children. Pods are listed here only if they have another owner. */
export interface ObservedObject {
  kind: ChildObject['kind'];
  /** Of a PodGroup, a kind of several API groups. */
  apiVersion?: string;
  name: string;
  uid: string;
  /** Its controller is this job. An object of another owner is never changed. */
  owned: boolean;
  /**
   * The label facetrain.dev/spec-digest. On a ConfigMap: digest of the job's spec. On every other object: digest of
   * that object's spec.
   */
  specDigest?: string;
  /** Of a PodGroup: the priority that the API server's admission gave it. */
  priority?: number | undefined;
  /** It has a deletion timestamp; a finalizer keeps it. */
  deleting?: true;
  /** Its controller is a deleted job of the same name. */
  leftover?: true;
}

/**
 * A create request that the API server refused, with its message. Plans get it for a moment only, so that a later one
 * tries again.
 */
export interface RefusedChild {
  kind: ChildObject['kind'];
  name: string;
  message: string;
  /** It did not refuse the object: for some time it has not managed to create it. The message is its error. */
  failed?: true;
}

/** Other FaceTrainJobs of the namespace that wait for the same ResourceQuota: see refusal.ts. */
export interface QuotaRivals {
  /** Kind and name of those that are older than this job, the oldest first. */
  ahead: string[];
  /** Number of those that are younger. */
  behind: number;
}

/** The newest progress of rank 0: from /v1/progress, or from its termination message. */
export interface ObservedProgress {
  attempt: number;
  /** Whom rank 0 waits for in the rendezvous, and why. */
  waitsFor?: string;
  step: number;
  totalSteps: number;
  epoch: number;
  imagesPerSecond?: number;
  loss?: number;
  etaSeconds?: number;
  evaluations?: EvaluationResult[];
  /** The newest complete checkpoint. */
  checkpoint?: { step: number; time?: string };
  /** Checkpoints that this attempt has found damaged. */
  setAside?: NonNullable<FaceTrainJobStatus['damagedCheckpoints']>;
  /** Counter of all work of the trainer: steps, evaluation batches, checkpoint files. */
  activity: number;
}

/** What Kueue has decided about the Workload of a job, as the server has it. */
export interface ObservedWorkload {
  name: string;
  uid: string;
  resourceVersion: string;
  generation: number;
  deleting: boolean;
  finalizers: string[];
  /** The label facetrain.dev/spec-digest: for which pods it was made. */
  specDigest?: string;
  /** Number of the first pod for which it was made: 0, or that of one by which an elastic gang asks for more. */
  first: number;
  /** Number of pods for which it was made. */
  count: number;
  /** Kueue may admit it for as few; absent: for all or none, also where Kueue admits none in part. */
  minCount?: number;
  /** Number of those whose quota was given back: `status.reclaimablePods`. */
  reclaimable: number;
  /** `spec.active`: false takes it out of its queue. */
  active: boolean;
  /** It has no owner: MultiKueue has made it for the job, which adopts it. */
  orphan?: true;
  conditions: Condition[];
  /**
   * `status.admission.podSetAssignments`, of which there is one. `count`: the number of pods that it was admitted for.
   * `flavors`: names, without repetition.
   */
  assignment?: { count?: number; flavors: string[]; hasTopology: boolean };
  checks: AdmissionCheck[];
}

/** One of `status.admissionChecks` of a Workload. */
export interface AdmissionCheck {
  name: string;
  state: string;
  message: string;
  /** What it wants of the pods; of the only podSet. */
  update?: Placement;
}

/** Where Kueue wants the pods to run: what a flavor or an admission check adds to them. */
export interface Placement {
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  nodeSelector?: Record<string, string>;
  tolerations?: Record<string, unknown>[];
}

/** Kueue as the operator finds it. */
export interface ObservedQueue {
  /**
   * Whether Workloads are known. NotServed: the cluster has none, or the operator may not list them. NotListed: it has
   * them, and the API server cannot list them yet. Only where they are Listed a missing Workload is one that is gone.
   */
  workloads: 'Listed' | 'NotListed' | 'NotServed';
  workload?: ObservedWorkload;
  /** The queue that Kueue's label on the job names (QUEUE_LABEL in queue.ts). */
  label?: string;
  /** Name of the Workload that MultiKueue makes for the job: then the operator makes none, and keeps it to the end. */
  prebuilt?: string;
  /** Further Workloads of an elastic gang: for pods that it lacks, or has gained since it was admitted. */
  growth?: ObservedWorkload[];
  /** Value of the WorkloadPriorityClass of the spec, when it was read. */
  priority?: number;
  /** The ResourceFlavors of the assignments that were read, by name. */
  flavors: Record<string, Placement>;
  /** Why an object of Kueue's could not be read: what it is, and the API server's words. */
  problem?: string;
}

export type PodGroupApis = Partial<Record<PodGroupReader, string>>;

/** All that the planner of a FaceTrainJob needs to know. */
export interface ObservedFaceTrainJob {
  identity: JobIdentity;
  spec: FaceTrainJob['spec'];
  status: NonNullable<FaceTrainJob['status']>;
  pods: ObservedPod[];
  objects: ObservedObject[];
  /** Pods that may still run, of a deleted job of the same name. They write to the folders of this job. */
  predecessorPods?: ObservedObject[];
  /**
   * What must end before this job begins: jobs that write to the same place, and run or were created earlier, and pods
   * of deleted jobs that still write there. Each as a phrase: "FaceTrainJob faces".
   */
  jobsBefore?: string[];
  refused?: RefusedChild;
  /** Absent: the executor knows no queues, and the job starts at once. */
  queue?: ObservedQueue;
  quotaRivals?: QuotaRivals;
  /** A ResourceQuota of the namespace refuses pods of another job. */
  othersWaitForQuota?: true;
  progress?: ObservedProgress;
  /**
   * Since when the executor has looked for progress of the trainers that run now, and whether they answer what it
   * cannot read: an image of another release. Absent: for as long as they run.
   */
  progressWatch?: { since: string; isUnreadable: boolean };
  /** The QuantizeJob of this job, if it exists. */
  quantizeJob?: { spec: { suspend: boolean }; status: QuantizeJobStatus };
  /** The apiVersions of the PodGroups that the cluster serves, by who reads them. */
  podGroupApis: PodGroupApis;
  /** The cluster serves `restartPolicyRules` of containers. */
  servesRestartRules?: boolean;
}

/** All that the planner of a QuantizeJob needs to know; fields as in ObservedFaceTrainJob. */
export interface ObservedQuantizeJob {
  identity: JobIdentity;
  spec: QuantizeJob['spec'];
  status: QuantizeJobStatus;
  pods: ObservedPod[];
  objects: ObservedObject[];
  predecessorPods?: ObservedObject[];
  jobsBefore?: string[];
  refused?: RefusedChild;
  queue?: ObservedQueue;
}
