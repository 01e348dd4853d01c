/** What a planner is shown: the job, and what exists for it. Collected by an executor, decided upon by nobody but the planner. */
import type { EvaluationResult, FaceTrainJob, QuantizeJob, QuantizeJobStatus, TerminationResult } from '@facetrain/api';
import type { ChildObject } from './objects.ts';

/** Metadata of a job as the API server (or the executor of processes) has filled it in. */
export interface JobIdentity {
  name: string;
  namespace: string;
  uid: string;
  generation: number;
  deletionTimestamp?: string | undefined;
}

/** A pod as it was last seen, whoever runs it: a kubelet or the executor of processes. */
export interface ObservedPod {
  name: string;
  uid: string;
  attempt: number;
  rank: number;
  /** Unknown: its node does not answer. Any other word is treated like Unknown: alive, and not to be counted on. */
  phase: 'Pending' | 'Running' | 'Succeeded' | 'Failed' | 'Unknown' | (string & {});
  ready: boolean;
  /** Deletion was asked for; until the pod is gone its process may still run. */
  deleting: boolean;
  node?: string;
  createdAt: string;
  finishedAt?: string;
  /** Of the container "facetrain". A process that a signal ended has 128 + its number. */
  exitCode?: number;
  /** What Kubernetes says of a failed container or pod: OOMKilled, Evicted, ... */
  reason?: string;
  /** The container's termination message, if it is ours (termination.ts): what failed, ... */
  termination?: { code: string; message: string };
  /** ... or what came of a program that ended without an error. */
  result?: { progress?: ObservedProgress; artifact?: NonNullable<TerminationResult['artifact']> };
  /** The condition DisruptionTarget is True: preempted, drained, evicted. */
  disrupted: boolean;
  /** Its node is gone, or answers nobody: why that is thought. What ran there counts as lost. */
  lostNode?: string;
  /** Why a pod that waits does so: Unschedulable, ImagePullBackOff, FailedMount, ... with the message. */
  waiting?: { reason: string; message: string };
  /** The pod's label facetrain.dev/spec-digest. */
  specDigest?: string;
}

/** An object whose name is one of those that the planner gives. Pods are here only if they belong to somebody else. */
export interface ObservedObject {
  kind: 'Pod' | 'Service' | 'ConfigMap' | 'PodGroup' | 'NetworkPolicy' | 'QuantizeJob';
  name: string;
  uid: string;
  /** Its controller is this job; an object of the same name that is not ours is never touched. */
  owned: boolean;
  /** The label facetrain.dev/spec-digest: of the training that a ConfigMap configures, of a Service's or a NetworkPolicy's own spec. */
  specDigest?: string;
  /** Deletion was asked for; something keeps it. */
  deleting?: true;
  /** Its controller is a job of this name that was deleted before this one was made: it will go. */
  leftover?: true;
}

/** A create that the API server would not have, in its own words. Shown to the one plan after it, the next but one tries again. */
export interface RefusedChild {
  kind: ChildObject['kind'];
  name: string;
  message: string;
}

/** The newest answer of rank 0 to /v1/progress, or what it left behind at its end. */
export interface ObservedProgress {
  attempt: number;
  step: number;
  totalSteps: number;
  epoch: number;
  imagesPerSecond?: number;
  loss?: number;
  etaSeconds?: number;
  evaluations?: EvaluationResult[];
  /** The newest complete checkpoint. */
  checkpoint?: { step: number; time?: string };
  /** A counter that moves whenever the trainer does anything: steps, evaluation batches, checkpoint files. */
  activity: number;
}

export interface ObservedFaceTrainJob {
  identity: JobIdentity;
  spec: FaceTrainJob['spec'];
  status: NonNullable<FaceTrainJob['status']>;
  pods: ObservedPod[];
  objects: ObservedObject[];
  /** Names of pods that may still run, of a job of this name that was deleted before this one was made: they write where this one will. */
  predecessors?: string[];
  /** Other jobs that write to this one's output or checkpoints: those that run, and those that were made before it and are about to. */
  jobsBefore?: string[];
  refused?: RefusedChild;
  progress?: ObservedProgress;
  quantizeJob?: { spec: { suspend: boolean }; status: QuantizeJobStatus };
  /** apiVersion of the PodGroup that the cluster serves (scheduling.k8s.io/v1beta1), or null. */
  podGroupApi: string | null;
}

export interface ObservedQuantizeJob {
  identity: JobIdentity;
  spec: QuantizeJob['spec'];
  status: QuantizeJobStatus;
  pods: ObservedPod[];
  objects: ObservedObject[];
  predecessors?: string[];
  refused?: RefusedChild;
}
