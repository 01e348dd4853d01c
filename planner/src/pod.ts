/**
 * Makes a pod from the user's pod template and the fields that our program needs.
 *
 * The template decides node selectors, tolerations, sidecars, users, groups and annotations. Fields that the trainer or
 * the restricted Pod Security Standard require are always ours.
 */
import { DEFAULT_TERMINATION_GRACE_SECONDS, type FaceTrainJobSpec, HEALTH_PATH } from '@facetrain/api';
import type { Blocker } from './blocker.ts';
import type { Environment, MountedStorage } from './environment.ts';
import { Annotation, CONTAINER } from './names.ts';
import type { Container, EnvVar, Metadata, Pod, PodSpec, Volume } from './objects.ts';
import { isFetchContainer, oneVolumePerClaim, volumesOf } from './pod-storage.ts';
import { Reason } from './reasons.ts';

/** The fields by which a job describes its pods: `podFields` of the API. */
export type PodFields = Pick<
  FaceTrainJobSpec['trainers'],
  'image' | 'imagePullPolicy' | 'resources' | 'computeThreads' | 'podTemplate'
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
  container?: Pick<Container, 'ports' | 'readinessProbe' | 'livenessProbe'>;
  network?: { hostname: string; subdomain: string };
  podGroup?: string | undefined;
  /** As in the failure policy. */
  nodeLostSeconds: number;
}

/** User and group "nonroot" of distroless images. */
const NONROOT_ID = 65_532;

const CONFIG_VOLUME = 'facetrain-config';
const SCRATCH: { volume: Volume; mountPath: string }[] = [
  // The root file system is read-only.
  { volume: { name: 'facetrain-tmp', emptyDir: {} }, mountPath: '/tmp' },
  // NCCL's shared memory. The 64 MiB that a container has by default are too few.
  { volume: { name: 'facetrain-shm', emptyDir: { medium: 'Memory' } }, mountPath: '/dev/shm' },
];

const CONTAINER_SECURITY = {
  privileged: false,
  allowPrivilegeEscalation: false,
  readOnlyRootFilesystem: true,
  capabilities: { drop: ['ALL'] },
};
const POD_SECURITY = { runAsNonRoot: true, seccompProfile: { type: 'RuntimeDefault' } };
const POD_SECURITY_DEFAULTS = {
  runAsUser: NONROOT_ID,
  runAsGroup: NONROOT_ID,
  fsGroup: NONROOT_ID,
  fsGroupChangePolicy: 'OnRootMismatch',
};

/** The pod of one rank. It is never restarted by the kubelet: a failure ends the attempt. */
export function makePod(parts: PodParts, environment: Environment): Pod {
  const template = parts.fields.podTemplate;
  // Our schema accepts any template. The API server checks the pod that is made from it.
  const userSpec = (template?.spec ?? {}) as unknown as Loose & Partial<PodSpec>;
  const { containers: userContainers = [], initContainers: userInitContainers = [] } = userSpec;
  const container = ourContainer(parts, environment);
  const fetches = parts.storage.flatMap(({ fetch }) =>
    fetch ? [withSecurity({ ...fetch, ...imageOf(parts.fields, environment) })] : [],
  );
  const spec: PodSpec = {
    ...userSpec,
    ...parts.network,
    restartPolicy: 'Never',
    automountServiceAccountToken: false,
    terminationGracePeriodSeconds: userSpec.terminationGracePeriodSeconds ?? DEFAULT_TERMINATION_GRACE_SECONDS,
    securityContext: { ...POD_SECURITY_DEFAULTS, ...userSpec.securityContext, ...POD_SECURITY },
    ...(fetches.length + userInitContainers.length > 0 && {
      initContainers: [...fetches, ...userInitContainers.map(withLogAsMessage)],
    }),
    containers: [
      mergeContainer(
        container,
        userContainers.find(({ name }) => name === CONTAINER),
      ),
      ...userContainers.filter(({ name }) => name !== CONTAINER).map(withLogAsMessage),
    ],
    volumes: [...ourVolumes(parts.config.name, parts.storage), ...(userSpec.volumes ?? [])],
    tolerations: tolerations(userSpec.tolerations ?? [], parts.nodeLostSeconds),
    ...(parts.podGroup !== undefined && { schedulingGroup: { podGroupName: parts.podGroup } }),
  };
  const { labels, annotations: { [Annotation.writesTo]: _, ...userAnnotations } = {} } = template?.metadata ?? {};
  const annotations = {
    ...userAnnotations,
    ...(parts.writesTo.length > 0 && { [Annotation.writesTo]: JSON.stringify(parts.writesTo) }),
  };
  const metadata = {
    ...parts.metadata,
    labels: { ...labels, ...parts.metadata.labels },
    ...(Object.keys(annotations).length > 0 && { annotations }),
  };
  return { apiVersion: 'v1', kind: 'Pod', metadata, spec: oneVolumePerClaim(spec) };
}

/** A volume or init container of the template that has the name of one of ours; null if there is none. */
export function templateConflict(
  template: PodFields['podTemplate'],
  storage: MountedStorage[],
  path: string,
): Blocker | null {
  const volumes = new Set(ourVolumes('', storage).map(({ name }) => name));
  const clash = (field: 'volumes' | 'initContainers', isOurs: (name: string) => boolean): Blocker | null => {
    const index = template?.spec?.[field]?.findIndex(({ name }) => isOurs(name)) ?? -1;
    if (index < 0) return null;
    const { name } = template!.spec![field]![index]!;
    return {
      reason: Reason.invalidSpec,
      message: `${path}.spec.${field}[${index}].name: ${name} is a name of Facetrain's own; choose another`,
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

function imageOf(
  { image, imagePullPolicy }: PodFields,
  environment: Environment,
): Pick<Container, 'image' | 'imagePullPolicy'> {
  const chosen = image ?? environment.defaultImage;
  return { ...(chosen !== undefined && { image: chosen }), ...(imagePullPolicy !== undefined && { imagePullPolicy }) };
}

function ourContainer(parts: PodParts, environment: Environment): Container {
  const { resources } = parts.fields;
  return withSecurity({
    name: CONTAINER,
    ...imageOf(parts.fields, environment),
    args: parts.args,
    env: [...parts.env, { name: 'FACETRAIN_CONFIG', value: `${parts.config.directory}/config.json` }],
    ...parts.container,
    ...(resources && { resources: resources as NonNullable<Container['resources']> }),
    volumeMounts: [
      { name: CONFIG_VOLUME, mountPath: parts.config.directory, readOnly: true },
      ...SCRATCH.map(({ volume, mountPath }) => ({ name: volume.name, mountPath })),
      ...volumesOf(parts.storage).volumeMounts,
    ],
  });
}

/** Our fields override the template's; env and volumeMounts are concatenated, and securityContext is merged. */
function mergeContainer(ours: Container, theirs: Container | undefined): Container {
  if (!theirs) return ours;
  const names = new Set(ours.env.map(({ name }) => name));
  return {
    ...theirs,
    ...ours,
    env: [...(theirs.env ?? []).filter(({ name }) => !names.has(name)), ...ours.env],
    volumeMounts: [...ours.volumeMounts, ...(theirs.volumeMounts ?? [])],
    securityContext: { ...theirs.securityContext, ...ours.securityContext },
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
export function progressServer(port: number): Pick<Container, 'ports' | 'readinessProbe' | 'livenessProbe'> {
  const httpGet = { path: HEALTH_PATH, port };
  return {
    ports: [{ name: 'progress', containerPort: port }],
    readinessProbe: { httpGet, periodSeconds: 2 },
    livenessProbe: { httpGet, periodSeconds: 20, failureThreshold: 15 },
  };
}
