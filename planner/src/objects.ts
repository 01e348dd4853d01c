/**
 * The Kubernetes objects that plans create, with the fields that are used. They are plain data: the planner depends on
 * no Kubernetes client, and the executor that starts processes can interpret them. What exists is described in
 * observed.ts.
 */

/** metav1.OwnerReference, of the job that owns an object. */
export interface OwnerReference {
  apiVersion: string;
  kind: string;
  name: string;
  uid: string;
  controller: boolean;
  blockOwnerDeletion: boolean;
}

/** metav1.ObjectMeta of an object that a plan creates. */
export interface Metadata {
  name: string;
  namespace: string;
  labels: Record<string, string>;
  annotations?: Record<string, string>;
  ownerReferences: OwnerReference[];
  finalizers?: string[];
}

/** An environment variable: a value, or a key of a Secret that the executor looks up. */
export type EnvVar =
  | { name: string; value: string }
  | { name: string; valueFrom: { secretKeyRef: { name: string; key: string; optional?: boolean } } };

/** Where a volume of the pod appears in a container. */
export interface VolumeMount {
  name: string;
  mountPath: string;
  subPath?: string;
  readOnly?: boolean;
}

/** A volume of a pod. */
export type Volume =
  | { name: string; configMap: { name: string } }
  | { name: string; secret: { secretName: string } }
  | { name: string; hostPath: { path: string; type?: string } }
  | { name: string; persistentVolumeClaim: { claimName: string; readOnly?: boolean } }
  | { name: string; emptyDir: { medium?: string; sizeLimit?: string } };

/** A container of a pod, with the fields that plans set. */
export interface Container {
  name: string;
  image?: string;
  imagePullPolicy?: string;
  /** Arguments of the trainer program, which is the image's entry point. */
  args: string[];
  env: EnvVar[];
  ports?: { name?: string; containerPort: number }[];
  resources?: {
    limits?: Record<string, string>;
    requests?: Record<string, string>;
    claims?: { name: string; request?: string }[];
  };
  volumeMounts: VolumeMount[];
  volumeDevices?: { name: string; devicePath: string }[];
  readinessProbe?: { httpGet: { path: string; port: number }; periodSeconds: number };
  livenessProbe?: { httpGet: { path: string; port: number }; periodSeconds: number; failureThreshold: number };
  securityContext?: Record<string, unknown>;
  /** Instead of the pod's. Never: the rules say when the kubelet starts it again. */
  restartPolicy?: 'Never';
  restartPolicyRules?: { action: 'Restart'; exitCodes: { operator: 'In'; values: number[] } }[];
  terminationMessagePolicy?: 'File' | 'FallbackToLogsOnError';
}

/**
 * The spec of a pod. Other fields of the user's podTemplate are part of the object, too, though this type does not list
 * them.
 */
export interface PodSpec {
  hostname?: string;
  subdomain?: string;
  restartPolicy: 'Never';
  automountServiceAccountToken: boolean;
  terminationGracePeriodSeconds: number;
  initContainers?: Container[];
  containers: Container[];
  volumes: Volume[];
  nodeSelector?: Record<string, string>;
  affinity?: Record<string, unknown>;
  schedulerName?: string;
  hostNetwork?: boolean;
  dnsPolicy?: string;
  tolerations?: Record<string, unknown>[];
  resourceClaims?: object[];
  schedulingGates?: { name: string }[];
  schedulingGroup?: { podGroupName: string };
  securityContext?: Record<string, unknown>;
}

/** One rank of an attempt. */
export interface Pod {
  apiVersion: 'v1';
  kind: 'Pod';
  metadata: Metadata;
  spec: PodSpec;
}

/** `config.json` of an attempt. */
export interface ConfigMap {
  apiVersion: 'v1';
  kind: 'ConfigMap';
  metadata: Metadata;
  immutable: true;
  data: Record<string, string>;
}

/** The headless Service that gives rank 0 a host name. */
export interface Service {
  apiVersion: 'v1';
  kind: 'Service';
  metadata: Metadata;
  spec: {
    clusterIP: 'None';
    publishNotReadyAddresses: true;
    selector: Record<string, string>;
    ports: { name: string; port: number; appProtocol: string }[];
  };
}

/** The gang of an attempt, for kube-scheduler (scheduling.k8s.io). */
export interface PodGroup {
  apiVersion: string;
  kind: 'PodGroup';
  metadata: Metadata;
  spec: {
    schedulingPolicy: { gang: { minCount: number } };
    schedulingConstraints?: { topology: { key: string }[] };
    priorityClassName?: string;
  };
}

/**
 * The same for KAI Scheduler (scheduling.run.ai) or Volcano (scheduling.volcano.sh), with those of their fields that
 * both have.
 */
export interface QueuedPodGroup {
  apiVersion: string;
  kind: 'PodGroup';
  metadata: Metadata;
  spec: { minMember: number; queue?: string; priorityClassName?: string };
}

/** The request for quota of a job, which Kueue admits: queue.ts. */
export interface Workload {
  apiVersion: 'kueue.x-k8s.io/v1beta2';
  kind: 'Workload';
  metadata: Metadata;
  spec: {
    podSets: {
      name: string;
      count: number;
      minCount?: number;
      topologyRequest?: { required?: string | undefined; preferred?: string | undefined; podIndexLabel: string };
      template: { spec: Record<string, unknown> };
    }[];
    queueName: string;
    priorityClassRef?: { group: string; kind: string; name: string };
    priority?: number;
  };
}

/** Who may connect to the pods of a job. */
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

/** A QuantizeJob that a FaceTrainJob creates. Its spec is not parsed, so defaults are not filled in yet. */
export interface QuantizeJobObject {
  apiVersion: 'facetrain.dev/v1alpha1';
  kind: 'QuantizeJob';
  metadata: Metadata;
  spec: Record<string, unknown>;
}

/** Any object that a plan creates. */
export type ChildObject =
  | Pod
  | ConfigMap
  | Service
  | PodGroup
  | QueuedPodGroup
  | NetworkPolicy
  | QuantizeJobObject
  | Workload;
