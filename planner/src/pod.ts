/**
 * Makes a pod from the user's pod template and the fields that our program needs.
 *
 * The template decides node selectors, tolerations, sidecars, users, groups and annotations. What the trainer or the
 * restricted Pod Security Standard require of our container is ours: a template that says otherwise is refused
 * (podTemplateProblem in api/).
 */
import {
  DEFAULT_TERMINATION_GRACE_SECONDS,
  type FaceTrainJobSpec,
  HEALTH_PATH,
  podFieldsProblem,
  type QuantizerOutput,
} from '@facetrain/api';
import type { Blocker } from './blocker.ts';
import type { Environment, MountedStorage } from './environment.ts';
import { Annotation, CONTAINER } from './names.ts';
import type { Container, EnvVar, Metadata, Pod, PodSpec, Volume } from './objects.ts';
import { isFetchContainer, joinFetches, oneVolumePerClaim, volumesOf } from './pod-storage.ts';
import { Reason } from './reasons.ts';

/** The fields by which a job describes its pods: `podFields` of the API. */
export type PodFields = Pick<
  FaceTrainJobSpec['trainers'],
  'image' | 'imagePullPolicy' | 'resources' | 'resourceClaims' | 'computeThreads' | 'podTemplate'
>;
type Loose = Record<string, unknown>;

/** The fields in which the pods of trainers and of the quantizer differ. */
export interface PodParts {
  metadata: Metadata;
  fields: PodFields;
  args: string[];
  env: EnvVar[];
  storage: MountedStorage[];
  /** Name of the ConfigMap with config.json, and the folder where it is mounted. */
  config: { name: string; directory: string };
  /** Places that the pod writes to: written-places.ts. */
  writesTo: string[];
  /** Labels and annotations that a template may replace. */
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  container?: Pick<Container, 'ports' | 'readinessProbe' | 'livenessProbe' | 'restartPolicy' | 'restartPolicyRules'>;
  network?: { hostname: string; subdomain: string };
  /** As in the failure policy. */
  nodeLostSeconds: number;
}

/** User and group "nonroot" of distroless images. */
const NONROOT_ID = 65_532;

const CONFIG_VOLUME = 'facetrain-config';
/** A folder in memory in every pod. It outlives a restart of the container. */
export const SHARED_MEMORY = '/dev/shm';
const SCRATCH: { volume: Volume; mountPath: string }[] = [
  // The root file system is read-only.
  { volume: { name: 'facetrain-tmp', emptyDir: {} }, mountPath: '/tmp' },
  // NCCL's shared memory, for which the 64 MiB that a container has by default are too few; and what trainers keep of
  // their last steps (Environment.memoryDirectory).
  { volume: { name: 'facetrain-shm', emptyDir: { medium: 'Memory' } }, mountPath: SHARED_MEMORY },
];

const CONTAINER_SECURITY = {
  privileged: false,
  allowPrivilegeEscalation: false,
  readOnlyRootFilesystem: true,
  capabilities: { drop: ['ALL'] },
};
const POD_SECURITY_DEFAULTS = {
  runAsUser: NONROOT_ID,
  runAsGroup: NONROOT_ID,
  fsGroup: NONROOT_ID,
  fsGroupChangePolicy: 'OnRootMismatch',
  seccompProfile: { type: 'RuntimeDefault' },
};

/** A pod of ours. Beyond the rules of `parts.container` the kubelet starts nothing again. */
export function makePod(parts: PodParts, environment: Environment): Pod {
  const { podTemplate: template, resourceClaims = [] } = parts.fields;
  // Our schema accepts any template. The API server checks the pod that is made from it.
  const userSpec = (template?.spec ?? {}) as unknown as Loose & Partial<PodSpec>;
  const { containers: userContainers = [], initContainers: userInitContainers = [] } = userSpec;
  const theirs = userContainers.find(({ name }) => name === CONTAINER);
  const image = imageOf(parts.fields, environment);
  const ours = mergeContainer(ourContainer(parts, image), theirs);
  const inputs = parts.storage.flatMap(({ fetch }) => fetch ?? []);
  // An image of another release may not know the arguments for several inputs.
  const fetches = (hasDefaultImage(parts.fields, environment) ? joinFetches(inputs) : inputs).map((fetch) =>
    withSecurity({ ...fetch, ...image, ...fetchResources(ours.resources) }),
  );
  const spec: PodSpec = {
    // Otherwise a pod in the node's network asks the node's resolver, which does not know rank 0's name.
    ...(userSpec.hostNetwork === true && { dnsPolicy: 'ClusterFirstWithHostNet' }),
    ...userSpec,
    ...parts.network,
    restartPolicy: 'Never',
    automountServiceAccountToken: userSpec.automountServiceAccountToken ?? false,
    terminationGracePeriodSeconds: userSpec.terminationGracePeriodSeconds ?? DEFAULT_TERMINATION_GRACE_SECONDS,
    securityContext: { ...POD_SECURITY_DEFAULTS, ...userSpec.securityContext, runAsNonRoot: true },
    ...(fetches.length + userInitContainers.length > 0 && {
      initContainers: [...fetches, ...userInitContainers.map(withLogAsMessage)],
    }),
    containers: [ours, ...userContainers.filter(({ name }) => name !== CONTAINER).map(withLogAsMessage)],
    volumes: [...ourVolumes(parts.config.name, parts.storage), ...(userSpec.volumes ?? [])],
    tolerations: tolerations(userSpec.tolerations ?? [], parts.nodeLostSeconds),
    ...(resourceClaims.length > 0 && {
      resourceClaims: [...(userSpec.resourceClaims ?? []), ...resourceClaims.map(({ request: _, ...claim }) => claim)],
    }),
  };
  const { labels, annotations: { [Annotation.writesTo]: _, ...userAnnotations } = {} } = template?.metadata ?? {};
  const annotations = {
    ...parts.annotations,
    ...userAnnotations,
    ...(parts.writesTo.length > 0 && { [Annotation.writesTo]: JSON.stringify(parts.writesTo) }),
  };
  const metadata = {
    ...parts.metadata,
    labels: { ...parts.labels, ...labels, ...parts.metadata.labels },
    ...(Object.keys(annotations).length > 0 && { annotations }),
  };
  return { apiVersion: 'v1', kind: 'Pod', metadata, spec: oneVolumePerClaim(spec) };
}

/**
 * What of the template would have no effect, or has the name of a volume or an init container of ours; null if nothing
 * has.
 *
 * @param output of a quantizer; its credentials are environment variables of the pod
 */
export function templateConflict(
  path: 'spec.trainers' | 'spec.quantizer' | 'spec.quantize.quantizer',
  fields: PodFields,
  storage: MountedStorage[],
  output?: QuantizerOutput,
): Blocker | null {
  const problem = podFieldsProblem(path, fields, output);
  if (problem !== null) return { reason: Reason.invalidSpec, message: problem };
  const { podTemplate: template } = fields;
  const volumes = new Set(ourVolumes('', storage).map(({ name }) => name));
  const clash = (field: 'volumes' | 'initContainers', isOurs: (name: string) => boolean): Blocker | null => {
    const index = template?.spec?.[field]?.findIndex(({ name }) => isOurs(name)) ?? -1;
    if (index < 0) return null;
    const { name } = template!.spec![field]![index]!;
    return {
      reason: Reason.invalidSpec,
      message: `${path}.podTemplate.spec.${field}[${index}].name: ${name} is a name of Facetrain's own; choose another`,
    };
  };
  return (
    clash('volumes', (name) => volumes.has(name)) ??
    clash('initContainers', (name) => name === CONTAINER || isFetchContainer(name))
  );
}

function ourVolumes(config: string, storage: MountedStorage[]): Volume[] {
  return [
    { name: CONFIG_VOLUME, configMap: { name: config } },
    ...SCRATCH.map(({ volume }) => volume),
    ...volumesOf(storage).volumes,
  ];
}

/** The image of our program: of the job, else of the template's container "facetrain", else the operator's. */
function imageOf(
  { image, imagePullPolicy, podTemplate }: PodFields,
  environment: Environment,
): Pick<Container, 'image' | 'imagePullPolicy'> {
  const containers = podTemplate?.spec?.containers as Partial<Container>[] | undefined;
  const theirs = containers?.find(({ name }) => name === CONTAINER);
  const chosen = image ?? theirs?.image ?? environment.defaultImage;
  const policy = imagePullPolicy ?? theirs?.imagePullPolicy;
  return { ...(chosen !== undefined && { image: chosen }), ...(policy !== undefined && { imagePullPolicy: policy }) };
}

/** Whether a pod has the image of the operator's release. Another may be older, and not know what it is told. */
export const hasDefaultImage = (fields: PodFields, environment: Environment): boolean =>
  imageOf(fields, environment).image === environment.defaultImage;

function ourContainer(parts: PodParts, image: Pick<Container, 'image' | 'imagePullPolicy'>): Container {
  const { resourceClaims = [] } = parts.fields;
  const claims = resourceClaims.map(({ name, request }) => ({ name, ...(request !== undefined && { request }) }));
  const resources = mergeResources(
    parts.fields.resources && resourcesOf(parts.fields.resources),
    claims.length > 0 ? { claims } : undefined,
  );
  return withSecurity({
    name: CONTAINER,
    ...image,
    args: parts.args,
    env: [...parts.env, { name: 'FACETRAIN_CONFIG', value: `${parts.config.directory}/config.json` }],
    ...parts.container,
    ...(resources && { resources }),
    volumeMounts: [
      { name: CONFIG_VOLUME, mountPath: parts.config.directory, readOnly: true },
      ...SCRATCH.map(({ volume, mountPath }) => ({ name: volume.name, mountPath })),
      ...volumesOf(parts.storage).volumeMounts,
    ],
  });
}

/**
 * The template's fields, and ours where it must have none (podTemplateProblem). Lists are concatenated, resources and
 * security contexts merged. A probe of the template replaces ours.
 */
function mergeContainer(ours: Container, theirs: Partial<Container> | undefined): Container {
  if (!theirs) return ours;
  const names = new Set(ours.env.map(({ name }) => name));
  const ports = mergePorts(theirs.ports ?? [], ours.ports ?? []);
  const resources = mergeResources(theirs.resources, ours.resources);
  const { capabilities, ...otherSecurity } = (theirs.securityContext ?? {}) as { capabilities?: object };
  return {
    ...ours,
    ...theirs,
    name: ours.name,
    args: ours.args,
    ...(ours.image !== undefined && { image: ours.image }),
    ...(ours.imagePullPolicy !== undefined && { imagePullPolicy: ours.imagePullPolicy }),
    env: [...(theirs.env ?? []).filter(({ name }) => !names.has(name)), ...ours.env],
    ...(ports.length > 0 && { ports }),
    ...(resources && { resources }),
    volumeMounts: [...ours.volumeMounts, ...(theirs.volumeMounts ?? [])],
    securityContext: {
      ...otherSecurity,
      ...CONTAINER_SECURITY,
      // RDMA, for example, needs IPC_LOCK.
      capabilities: { ...capabilities, ...CONTAINER_SECURITY.capabilities },
    },
  };
}

type Ports = NonNullable<Container['ports']>;

/** A port of ours that the template lists is left out, and a name that it takes: nothing refers to ours. */
function mergePorts(theirs: Ports, ours: Ports): Ports {
  const others = ours.filter(({ containerPort: own }) => theirs.every(({ containerPort }) => containerPort !== own));
  const isTaken = (wanted: string | undefined) => theirs.some(({ name }) => name === wanted);
  return [...others.map(({ name, ...port }) => (isTaken(name) ? port : { name, ...port })), ...theirs];
}

type Resources = NonNullable<Container['resources']>;

function mergeResources(theirs: Resources | undefined, ours: Resources | undefined): Resources | undefined {
  if (!theirs || !ours) return theirs ?? ours;
  const merged = <K extends 'limits' | 'requests'>(field: K) =>
    (theirs[field] ?? ours[field]) && { [field]: { ...theirs[field], ...ours[field] } };
  const claims = [...(theirs.claims ?? []), ...(ours.claims ?? [])];
  return { ...theirs, ...merged('limits'), ...merged('requests'), ...(claims.length > 0 && { claims }) };
}

/** Resources of nodes themselves. Others, such as GPUs, are devices, which a fetch does not need. */
const NODE_RESOURCES = ['cpu', 'memory', 'ephemeral-storage'];

/**
 * Resources of an init container that fetches data: the CPU and memory of the container after it, which cost the pod
 * nothing more, as its init containers run before. A ResourceQuota on CPUs or memory refuses a pod of which one
 * container names none, and such a pod is never of the QoS class Guaranteed.
 */
function fetchResources(resources: Resources | undefined): Pick<Container, 'resources'> {
  const part = (field: 'limits' | 'requests') => {
    const amounts = Object.entries(resources?.[field] ?? {}).filter(([name]) => NODE_RESOURCES.includes(name));
    return amounts.length > 0 && { [field]: Object.fromEntries(amounts) };
  };
  const own = { ...part('limits'), ...part('requests') };
  return Object.keys(own).length > 0 ? { resources: own } : {};
}

/** Quantities as strings, as the API server writes them. */
function resourcesOf({ limits, requests, claims }: NonNullable<PodFields['resources']>): Resources {
  const amounts = (list: Record<string, string | number>) =>
    Object.fromEntries(Object.entries(list).map(([name, amount]) => [name, String(amount)]));
  return {
    ...(limits && { limits: amounts(limits) }),
    ...(requests && { requests: amounts(requests) }),
    ...(claims && { claims: claims.map(({ name, request }) => ({ name, ...(request !== undefined && { request }) })) }),
  };
}

/**
 * If a program fails before it writes its termination message, the end of its log explains why. A container of the
 * template that sets the policy itself keeps it.
 */
const withLogAsMessage = (container: Container): Container => ({
  terminationMessagePolicy: 'FallbackToLogsOnError',
  ...container,
});

function withSecurity(container: Container): Container {
  return withLogAsMessage({ ...container, securityContext: CONTAINER_SECURITY });
}

const UNREACHABLE = 'node.kubernetes.io/unreachable';

/**
 * Whether a template sets a toleration for unreachable nodes, and so decides how long its pods stay on a lost node.
 */
export const toleratesNodeLoss = (template: PodFields['podTemplate']): boolean =>
  template?.spec?.tolerations?.some(({ key }) => key === UNREACHABLE) ?? false;

/**
 * Seconds after which Kubernetes evicts the pods of a node that the planner has not called lost before: a node whose
 * kubelet says that it is not ready, or any node if the operator may not read nodes.
 */
const EVICTION_MARGIN_SECONDS = 5;

function tolerations(theirs: Loose[], nodeLostSeconds: number): Loose[] {
  const ours = ['node.kubernetes.io/not-ready', UNREACHABLE].map((key) => ({
    key,
    operator: 'Exists',
    effect: 'NoExecute',
    tolerationSeconds: nodeLostSeconds + EVICTION_MARGIN_SECONDS,
  }));
  return [...ours.filter(({ key }) => !theirs.some((toleration) => toleration.key === key)), ...theirs];
}

/**
 * Port and probes of the container that serves progress. The liveness probe fails after 5 minutes (15 × 20 s), because
 * it is for a stuck process only; for a gang that hangs there is progressDeadlineSeconds.
 */
export function progressServer(port: number): Required<Pick<Container, 'ports' | 'readinessProbe' | 'livenessProbe'>> {
  const httpGet = { path: HEALTH_PATH, port };
  return {
    ports: [{ name: 'progress', containerPort: port }],
    readinessProbe: { httpGet, periodSeconds: 2 },
    livenessProbe: { httpGet, periodSeconds: 20, failureThreshold: 15 },
  };
}
