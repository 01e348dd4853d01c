/** Storage that a pod uses, as its environment mounts it, with the credentials that reading it takes. */
import type { S3Access, StorageRef } from '@facetrain/api';
import type { Environment, MountedStorage } from './environment.ts';
import type { Container, EnvVar, Volume, VolumeMount } from './objects.ts';

export interface MountedVolumes {
  volumes: Volume[];
  volumeMounts: VolumeMount[];
}

/** `environment.storage`, with credentials for the container that fetches. */
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

/** The container that copies an object store's data to `path` before the program starts: `facetrain-trainer fetch`. Its credentials come from `mounted`. */
export function fetchContainer(
  name: string,
  { uri, s3 }: StorageRef,
  path: string,
  volumeMounts: VolumeMount[],
): Container {
  const { endpoint, region, forcePathStyle, cache } = s3 ?? {};
  const options = [
    ...(cache ? ['--shared'] : []),
    ...(endpoint ? ['--endpoint', endpoint] : []),
    ...(region ? ['--region', region] : []),
    ...(forcePathStyle ? ['--force-path-style'] : []),
  ];
  return { name: `fetch-${name}`, args: ['fetch', '--uri', uri, '--to', path, ...options], env: [], volumeMounts };
}

/** Where an object store's data lies in a cache: below a folder of its server, so that whoever reads the same finds it. */
export function cachePath({ uri, s3 }: StorageRef): string {
  const server = s3?.endpoint?.replace(/^https?:\/\//, '') ?? 'aws';
  const segments = [server, uri.replace(/^s3:\/\//, '')]
    .flatMap((part) => part.split('/'))
    .filter((segment) => segment !== '');
  return segments.map((segment) => (/^\.+$/.test(segment) ? segment.replaceAll('.', '%2E') : segment)).join('/');
}

/** AWS credentials by reference to the keys of a Secret: never a value that a config, a status or a log could show. */
export function credentialEnv(access: S3Access | undefined): EnvVar[] {
  const secret = access?.secretRef;
  if (!secret) return [];
  const entry = (key: string, optional: boolean): EnvVar => ({
    name: key,
    valueFrom: { secretKeyRef: { name: secret.name, key, ...(optional && { optional }) } },
  });
  return [entry('AWS_ACCESS_KEY_ID', false), entry('AWS_SECRET_ACCESS_KEY', false), entry('AWS_SESSION_TOKEN', true)];
}

/** The volumes of some storage; two uses of one volume are one volume. */
export function volumesOf(storage: MountedStorage[]): MountedVolumes {
  const volumes = new Map(storage.flatMap(({ volume }) => (volume ? [[volume.name, volume] as const] : [])));
  return { volumes: [...volumes.values()], volumeMounts: storage.flatMap(({ mount }) => (mount ? [mount] : [])) };
}
