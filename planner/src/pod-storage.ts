/** Storage of a pod: its volumes, the containers that fetch from object stores, and their credentials. */
import {
  normalStorageUri,
  type ObjectStorePlace,
  parseStorageUri,
  S3_CREDENTIALS_ENV,
  type S3Access,
  type StorageRef,
  storageAddress,
  type VerificationSet,
} from '@facetrain/api';
import type { Environment, MountedStorage } from './environment.ts';
import type { Container, EnvVar, PodSpec, Volume, VolumeMount } from './objects.ts';

export interface MountedVolumes {
  volumes: Volume[];
  volumeMounts: VolumeMount[];
}

/** `environment.storage`, with the credentials of the container that fetches. */
export function mountWithCredentials(
  environment: Environment,
  name: string,
  reference: StorageRef,
  access: 'read' | 'write',
): MountedStorage {
  const storage = environment.storage(name, reference, access);
  if (!storage.fetch) return storage;
  return { ...storage, fetch: { ...storage.fetch, env: [...storage.fetch.env, ...credentialEnv(reference.s3)] } };
}

/** A verification set, and the groups of its pairs. */
export interface MountedSet {
  pairs: MountedStorage;
  groups?: MountedStorage;
}

export function mountSets(
  environment: Environment,
  sets: readonly (StorageRef & { groups?: StorageRef | undefined })[],
): MountedSet[] {
  return sets.map((set, index) => ({
    pairs: mountWithCredentials(environment, `evaluation-${index}`, set, 'read'),
    ...(set.groups && {
      groups: mountWithCredentials(environment, `evaluation-${index}-groups`, set.groups, 'read'),
    }),
  }));
}

export const storageOfSets = (sets: MountedSet[]): MountedStorage[] =>
  sets.flatMap(({ pairs, groups }) => (groups ? [pairs, groups] : [pairs]));

/** The sets as a pod's program is told of them. */
export function setsOfConfig(sets: readonly { name: string }[], mounted: MountedSet[]): VerificationSet[] {
  return sets.map(({ name }, index) => {
    const { pairs, groups } = mounted[index]!;
    return { name, path: pairs.path, ...(groups && { groups: groups.path }) };
  });
}

/** Storage that a program writes to by itself. */
export interface WrittenStorage extends MountedStorage {
  /** An object store, with what is mounted for its credentials; null: `path` is a folder. */
  store: ObjectStorePlace | null;
}

/**
 * Where trainers write: a folder, or an object store, for which nothing but the credentials is mounted. They are files,
 * because those of a mounted Secret follow it, and because checkpoints and output may have different ones.
 */
export function writtenStorage(environment: Environment, name: string, reference: StorageRef): WrittenStorage {
  if (parseStorageUri(reference.uri).scheme !== 's3')
    return { ...environment.storage(name, reference, 'write'), store: null };
  const uri = normalStorageUri(reference.uri);
  const { path = null, ...mounted } = mountedCredentials(environment, name, reference) ?? {};
  return { ...mounted, path: uri, store: { ...storageAddress(reference), uri, credentials: path } };
}

/** The Secret of a place that a program writes to, as files; null: it names none, or the environment has them. */
export function mountedCredentials(
  environment: Environment,
  name: string,
  { s3 }: Pick<StorageRef, 's3'>,
): MountedStorage | null {
  const secret = s3?.secretRef;
  return secret ? environment.credentials(`${name}-credentials`, secret.name) : null;
}

/**
 * Whether an init container of a job's pod has a name of ours: it fetches one of the inputs of a pod, and its exit
 * codes are Facetrain's. `templateConflict` in pod.ts refuses these names in a pod template.
 */
export const isFetchContainer = (name: string): boolean =>
  /^fetch-(dataset|model|evaluation-\d+(-groups)?)$/.test(name);

/**
 * An init container that copies data of an object store to `path`: `facetrain-trainer fetch`. `mountWithCredentials`
 * adds the credentials. With a cache, other pods fetch to the same path, and `--shared` makes them take turns.
 */
export function fetchContainer(
  name: string,
  reference: StorageRef,
  path: string,
  volumeMounts: VolumeMount[],
): Container {
  const { uri, endpoint, region, forcePathStyle } = storageAddress(reference);
  const options = [
    ...(reference.s3?.cache ? ['--shared'] : []),
    ...(endpoint ? ['--endpoint', endpoint] : []),
    ...(region ? ['--region', region] : []),
    ...(forcePathStyle ? ['--force-path-style'] : []),
  ];
  return { name: `fetch-${name}`, args: ['fetch', '--uri', uri, '--to', path, ...options], env: [], volumeMounts };
}

/**
 * Containers that fetch with the same credentials become one, with the name of the first. Init containers run one after
 * the other, and each costs a start of the program and a second until the kubelet sees its end: in every restart, also
 * where all data is in a cache.
 */
export function joinFetches(containers: Container[]): Container[] {
  const groups = Map.groupBy(containers, ({ env }) => JSON.stringify(env));
  return [...groups.values()].map(([first, ...others]) => ({
    ...first!,
    args: [first!, ...others].flatMap(({ args }, index) => (index === 0 ? args : [AND, ...args.slice(1)])),
    volumeMounts: [first!, ...others].flatMap(({ volumeMounts }) => volumeMounts),
  }));
}

/** Between two requests in the arguments of `facetrain-trainer fetch`. An image of before refuses the word. */
const AND = '--and';

/** The number of inputs that a container fetches. */
export const countFetches = ({ args }: Container): number => args.filter((arg) => arg === AND).length + 1;

/**
 * Path of an object (or a prefix) in a cache: server, bucket, key. Readers of the same object get the same path.
 * Segments of dots are escaped, so that no key leads out of the cache.
 * @throws TypeError if the reference is not to an object store
 */
export function cachePath({ uri, s3 }: StorageRef): string {
  const location = parseStorageUri(uri);
  if (location.scheme !== 's3') throw new TypeError(`only objects are cached, not ${uri}`);
  const server = s3?.endpoint?.replace(/^https?:\/\//, '') ?? 'aws';
  const segments = [server, location.bucket, location.key]
    .flatMap((part) => part.split('/'))
    .filter((segment) => segment !== '');
  return segments.map((segment) => (/^\.+$/.test(segment) ? segment.replaceAll('.', '%2E') : segment)).join('/');
}

/**
 * Environment variables with AWS credentials, as references to keys of a Secret: their values appear in no object and
 * no log.
 */
export function credentialEnv(access: S3Access | undefined): EnvVar[] {
  const secret = access?.secretRef;
  if (!secret) return [];
  const entry = (key: string, optional: boolean): EnvVar => ({
    name: key,
    valueFrom: { secretKeyRef: { name: secret.name, key, ...(optional && { optional }) } },
  });
  const [id, key, token] = S3_CREDENTIALS_ENV;
  return [entry(id, false), entry(key, false), entry(token, true)];
}

/**
 * A pod that lists each claim once, under the name of its first volume; the mounts of the others follow that name.
 *
 * With a StorageClass of volumeBindingMode WaitForFirstConsumer, kube-scheduler looks for a PersistentVolume for each
 * volume of the pod (findMatchingVolumes in its plugin volumebinding). For a claim that is listed twice it looks for
 * two, and binds none.
 */
export function oneVolumePerClaim(spec: PodSpec): PodSpec {
  const byClaim = Map.groupBy(
    spec.volumes.filter((volume) => 'persistentVolumeClaim' in volume),
    (volume) => volume.persistentVolumeClaim.claimName,
  );
  /** By the name of a volume that is left out, or that loses `readOnly`: how its mounts change. */
  const changes = new Map<string, { name: string; readOnly?: true }>();
  const merged = new Map<string, Volume>();
  for (const volumes of byClaim.values()) {
    const [{ name }] = volumes as [ClaimVolume];
    const { readOnly: _, ...claim } = volumes[0]!.persistentVolumeClaim;
    const isReadOnly = volumes.every(({ persistentVolumeClaim }) => persistentVolumeClaim.readOnly);
    merged.set(name, { name, persistentVolumeClaim: { ...claim, ...(isReadOnly && { readOnly: true }) } });
    for (const volume of volumes)
      changes.set(volume.name, { name, ...(volume.persistentVolumeClaim.readOnly && { readOnly: true }) });
  }
  const follow = (container: Container): Container => ({
    ...container,
    ...(container.volumeMounts && {
      volumeMounts: container.volumeMounts.map((mount) => ({ ...mount, ...changes.get(mount.name) })),
    }),
    ...(container.volumeDevices && {
      volumeDevices: container.volumeDevices.map((device) => ({
        ...device,
        name: changes.get(device.name)?.name ?? device.name,
      })),
    }),
  });
  return {
    ...spec,
    ...(spec.initContainers && { initContainers: spec.initContainers.map(follow) }),
    containers: spec.containers.map(follow),
    volumes: spec.volumes.flatMap((volume) => {
      const change = changes.get(volume.name);
      return change === undefined ? [volume] : change.name === volume.name ? [merged.get(volume.name)!] : [];
    }),
  };
}

type ClaimVolume = Extract<Volume, { persistentVolumeClaim: unknown }>;

/** Volumes and mounts of all storage of a pod. A volume that is used twice appears once. */
export function volumesOf(storage: MountedStorage[]): MountedVolumes {
  const volumes = new Map(storage.flatMap(({ volume }) => (volume ? [[volume.name, volume] as const] : [])));
  return { volumes: [...volumes.values()], volumeMounts: storage.flatMap(({ mount }) => (mount ? [mount] : [])) };
}
