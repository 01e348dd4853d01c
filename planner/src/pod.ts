/**
 * A pod of ours, laid over the user's template. The user decides about everything that we do not need (node selectors,
 * tolerations, sidecars, users and groups, annotations); what the restricted Pod Security Standard and the trainer demand is ours.
 */
import {
  DEFAULT_NODE_LOSS_SECONDS,
  DEFAULT_TERMINATION_GRACE_SECONDS,
  type FaceTrainJobSpec,
  HEALTH_PATH,
} from '@facetrain/api';
import type { Blocker } from './children.ts';
import type { Environment, MountedStorage } from './environment.ts';
import { CONTAINER } from './names.ts';
import type { Container, EnvVar, Metadata, Pod, PodSpec, Volume } from './objects.ts';
import { volumesOf } from './pod-storage.ts';
import { Reason } from './reasons.ts';

/** `podFields` of the api: what a job says about its pods. */
export type PodFields = Pick<
  FaceTrainJobSpec['trainers'],
  'image' | 'imagePullPolicy' | 'resources' | 'computeThreads' | 'podTemplate'
>;
type Loose = Record<string, unknown>;

export interface PodParts {
  metadata: Metadata;
  fields: PodFields;
  args: string[];
  env: EnvVar[];
  storage: MountedStorage[];
  /** Of the ConfigMap with config.json. */
  config: { name: string; directory: string };
  container?: Pick<Container, 'ports' | 'readinessProbe' | 'livenessProbe'>;
  network?: { hostname: string; subdomain: string };
  podGroup?: string | undefined;
}

/** "nonroot" of the images that carry no user of their own. */
const NONROOT_ID = 65_532;

const CONFIG_VOLUME = 'facetrain-config';
const SCRATCH: { volume: Volume; mountPath: string }[] = [
  // The root file system is read-only.
  { volume: { name: 'facetrain-tmp', emptyDir: {} }, mountPath: '/tmp' },
  // NCCL's shared memory; a container's own 64 MiB are too few.
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

export function makePod(parts: PodParts, environment: Environment): Pod {
  const template = parts.fields.podTemplate;
  // The schema lets a template through as it is, so its parts have the shapes of Kubernetes, which the API server checks.
  const theirs = (template?.spec ?? {}) as unknown as Loose & Partial<PodSpec>;
  const { containers: theirContainers = [], initContainers: theirInit = [] } = theirs;
  const container = ourContainer(parts, environment);
  const fetches = parts.storage.flatMap(({ fetch }) =>
    fetch ? [withSecurity({ ...fetch, ...imageOf(parts.fields, environment) })] : [],
  );
  const spec: PodSpec = {
    ...theirs,
    ...parts.network,
    restartPolicy: 'Never',
    automountServiceAccountToken: false,
    terminationGracePeriodSeconds: theirs.terminationGracePeriodSeconds ?? DEFAULT_TERMINATION_GRACE_SECONDS,
    securityContext: { ...POD_SECURITY_DEFAULTS, ...theirs.securityContext, ...POD_SECURITY },
    ...(fetches.length + theirInit.length > 0 && { initContainers: [...fetches, ...theirInit] }),
    containers: [
      mergeContainer(
        container,
        theirContainers.find(({ name }) => name === CONTAINER),
      ),
      ...theirContainers.filter(({ name }) => name !== CONTAINER),
    ],
    volumes: [...ourVolumes(parts.config.name, parts.storage), ...(theirs.volumes ?? [])],
    tolerations: tolerations(theirs.tolerations ?? []),
    ...(parts.podGroup !== undefined && { schedulingGroup: { podGroupName: parts.podGroup } }),
  };
  const { labels, annotations } = template?.metadata ?? {};
  const metadata = {
    ...parts.metadata,
    labels: { ...labels, ...parts.metadata.labels },
    ...(annotations && { annotations }),
  };
  return { apiVersion: 'v1', kind: 'Pod', metadata, spec };
}

/** What a template holds that cannot be merged: the field's path and why; null when it can. */
export function templateConflict(
  template: PodFields['podTemplate'],
  storage: MountedStorage[],
  path: string,
): Blocker | null {
  const volumes = new Set(ourVolumes('', storage).map(({ name }) => name));
  const containers = new Set([CONTAINER, ...storage.flatMap(({ fetch }) => (fetch ? [fetch.name] : []))]);
  const clash = (field: 'volumes' | 'initContainers', ours: Set<string>): Blocker | null => {
    const index = template?.spec?.[field]?.findIndex(({ name }) => ours.has(name)) ?? -1;
    if (index < 0) return null;
    return {
      reason: Reason.invalidSpec,
      message: `${path}.spec.${field}[${index}].name: ${template!.spec![field]![index]!.name} is a name of Facetrain's own; choose another`,
    };
  };
  return clash('volumes', volumes) ?? clash('initContainers', containers);
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

/** Our part wins where both speak, and lists are joined. */
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

/** A refused input is explained by the program's last words, even if it had no time to write them where they belong. */
function withSecurity(container: Container): Container {
  return { ...container, securityContext: CONTAINER_SECURITY, terminationMessagePolicy: 'FallbackToLogsOnError' };
}

const UNREACHABLE = 'node.kubernetes.io/unreachable';

/** Whether a template says itself how long to wait for a node that does not answer. */
export const toleratesNodeLoss = (template: PodFields['podTemplate']): boolean =>
  template?.spec?.tolerations?.some(({ key }) => key === UNREACHABLE) ?? false;

function tolerations(theirs: Loose[]): Loose[] {
  const ours = ['node.kubernetes.io/not-ready', UNREACHABLE].map((key) => ({
    key,
    operator: 'Exists',
    effect: 'NoExecute',
    tolerationSeconds: DEFAULT_NODE_LOSS_SECONDS,
  }));
  return [...ours.filter(({ key }) => !theirs.some((toleration) => toleration.key === key)), ...theirs];
}

/** Of the container that serves progress. Liveness is patient: it is for a process that is stuck, and hangs of a gang have a deadline of their own. */
export function progressServer(port: number): Pick<Container, 'ports' | 'readinessProbe' | 'livenessProbe'> {
  const httpGet = { path: HEALTH_PATH, port };
  return {
    ports: [{ name: 'progress', containerPort: port }],
    readinessProbe: { httpGet, periodSeconds: 2 },
    livenessProbe: { httpGet, periodSeconds: 20, failureThreshold: 15 },
  };
}
