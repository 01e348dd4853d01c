/** Kinds of objects by the name that the API's paths have for them, and the part of an object that all kinds share. */

export interface ObjectMeta {
  name: string;
  namespace?: string;
  uid: string;
  resourceVersion: string;
  generation?: number;
  creationTimestamp: string;
  deletionTimestamp?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  ownerReferences?: { apiVersion: string; kind: string; name: string; uid: string; controller?: boolean }[];
}

export interface KubernetesObject {
  apiVersion?: string;
  kind?: string;
  metadata: ObjectMeta;
}

/** A kind. `T` is what the server answers with, as far as the caller looks at it. */
export interface Resource<T extends KubernetesObject = KubernetesObject> {
  apiVersion: string;
  plural: string;
  /** Never set: carries T. */
  readonly object?: T;
}

export const defineResource = <T extends KubernetesObject>(apiVersion: string, plural: string): Resource<T> => ({
  apiVersion,
  plural,
});

/** @param namespace null: all of them, or none, for a kind that has no namespaces */
export function collectionPath({ apiVersion, plural }: Resource, namespace: string | null): string {
  const root = apiVersion.includes('/') ? `/apis/${apiVersion}` : `/api/${apiVersion}`;
  return namespace === null ? `${root}/${plural}` : `${root}/namespaces/${namespace}/${plural}`;
}

export const objectPath = (resource: Resource, namespace: string | null, name: string): string =>
  `${collectionPath(resource, namespace)}/${encodeURIComponent(name)}`;

/** What a work queue calls an object. */
export const keyOf = ({
  metadata: { namespace, name },
}: {
  metadata: Pick<ObjectMeta, 'namespace' | 'name'>;
}): string => `${namespace ?? ''}/${name}`;

export function splitKey(key: string): { namespace: string; name: string } {
  const slash = key.indexOf('/');
  return { namespace: key.slice(0, slash), name: key.slice(slash + 1) };
}

export const controllerOf = ({ metadata }: KubernetesObject) =>
  metadata.ownerReferences?.find(({ controller }) => controller);
