/**
 * The Kubernetes objects that plans create and read, cut down to the fields that are used: plain data, so that the planner
 * depends on no client and an executor of processes can interpret it.
 */
import type { TerminationResult } from '@facetrain/api';
import type { ObservedProgress } from './observed.ts';

export interface OwnerReference {
  apiVersion: string;
  kind: string;
  name: string;
  uid: string;
  controller: boolean;
  blockOwnerDeletion: boolean;
}

export interface Metadata {
  name: string;
  namespace: string;
  labels: Record<string, string>;
  annotations?: Record<string, string>;
  ownerReferences: OwnerReference[];
}

/** An environment variable: a value, or a field of the pod or a key of a Secret that the executor looks up. */
export type EnvVar =
  | { name: string; value: string }
  | { name: string; valueFrom: { secretKeyRef: { name: string; key: string; optional?: boolean } } };

export interface VolumeMount {
  name: string;
  mountPath: string;
  subPath?: string;
  readOnly?: boolean;
}

export type Volume =
  | { name: string; configMap: { name: string } }
  | { name: string; hostPath: { path: string; type?: string } }
  | { name: string; persistentVolumeClaim: { claimName: string } }
  | { name: string; emptyDir: { medium?: string; sizeLimit?: string } };

export interface Container {
  name: string;
  image?: string;
  imagePullPolicy?: string;
  /** Arguments of the image's entry point, which is the trainer program. */
  args: string[];
  env: EnvVar[];
  ports?: { name: string; containerPort: number }[];
  resources?: { limits?: Record<string, string | number>; requests?: Record<string, string | number> };
  volumeMounts: VolumeMount[];
  readinessProbe?: { httpGet: { path: string; port: number }; periodSeconds: number };
  livenessProbe?: { httpGet: { path: string; port: number }; periodSeconds: number; failureThreshold: number };
  securityContext?: Record<string, unknown>;
  terminationMessagePolicy?: 'File' | 'FallbackToLogsOnError';
}

/** The spec of a pod of ours. What a user's podTemplate adds beyond this type is carried along unseen. */
export interface PodSpec {
  hostname?: string;
  subdomain?: string;
  restartPolicy: 'Never';
  automountServiceAccountToken: false;
  terminationGracePeriodSeconds: number;
  initContainers?: Container[];
  containers: Container[];
  volumes: Volume[];
  tolerations?: Record<string, unknown>[];
  schedulingGroup?: { podGroupName: string };
  securityContext?: Record<string, unknown>;
}

export interface Pod {
  apiVersion: 'v1';
  kind: 'Pod';
  metadata: Metadata;
  spec: PodSpec;
}

export interface ConfigMap {
  apiVersion: 'v1';
  kind: 'ConfigMap';
  metadata: Metadata;
  immutable: true;
  data: Record<string, string>;
}

export interface Service {
  apiVersion: 'v1';
  kind: 'Service';
  metadata: Metadata;
  spec: {
    clusterIP: 'None';
    publishNotReadyAddresses: true;
    selector: Record<string, string>;
    ports: { name: string; port: number }[];
  };
}

export interface PodGroup {
  apiVersion: string;
  kind: 'PodGroup';
  metadata: Metadata;
  spec: { schedulingPolicy: { gang: { minCount: number } } };
}

export interface NetworkPolicy {
  apiVersion: 'networking.k8s.io/v1';
  kind: 'NetworkPolicy';
  metadata: Metadata;
  spec: {
    podSelector: { matchLabels: Record<string, string> };
    policyTypes: ['Ingress'];
    ingress: {
      from?: { podSelector: { matchLabels: Record<string, string> } }[];
      ports?: { protocol: 'TCP'; port: number }[];
    }[];
  };
}

/** A QuantizeJob as a FaceTrainJob makes it: the spec before defaults, which its own parser fills in. */
export interface QuantizeJobObject {
  apiVersion: 'facetrain.dev/v1alpha1';
  kind: 'QuantizeJob';
  metadata: Metadata;
  spec: Record<string, unknown>;
}

export type ChildObject = Pod | ConfigMap | Service | PodGroup | NetworkPolicy | QuantizeJobObject;

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
