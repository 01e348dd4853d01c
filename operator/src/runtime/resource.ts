/** Kinds of objects as the API's paths name them, and the fields that objects of all kinds have. */

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
  finalizers?: string[];
  ownerReferences?: { apiVersion: string; kind: string; name: string; uid: string; controller?: boolean }[];
}

export interface KubernetesObject {
  apiVersion?: string;
  kind?: string;
  metadata: ObjectMeta;
}

/** A kind. `T` has the fields of its objects that the caller reads. */
export interface Resource<T extends KubernetesObject = KubernetesObject> {
  apiVersion: string;
  plural: string;
  /** Never set: it carries the type T. */
  readonly object?: T;
}

export const defineResource = <T extends KubernetesObject>(apiVersion: string, plural: string): Resource<T> => ({
  apiVersion,
  plural,
});

/** @param namespace null: all namespaces, or none for a cluster-scoped kind */
export function collectionPath({ apiVersion, plural }: Resource, namespace: string | null): string {
  const root = apiVersion.includes('/') ? `/apis/${apiVersion}` : `/api/${apiVersion}`;
  return namespace === null ? `${root}/${plural}` : `${root}/namespaces/${namespace}/${plural}`;
}

export const objectPath = (resource: Resource, namespace: string | null, name: string): string =>
  `${collectionPath(resource, namespace)}/${encodeURIComponent(name)}`;

/** The key of an object in caches and work queues: "namespace/name", or "/name" for a cluster-scoped kind. */
export const keyOf = ({
  metadata: { namespace, name },
}: {
  metadata: Pick<ObjectMeta, 'namespace' | 'name'>;
}): string => `${namespace ?? ''}/${name}`;

export function splitKey(key: string): { namespace: string; name: string } {
  const slash = key.indexOf('/');
  return { namespace: key.slice(0, slash), name: key.slice(slash + 1) };
}

/** The owner that controls the object (metav1.GetControllerOf). */
export const controllerOf = ({ metadata }: KubernetesObject) =>
  metadata.ownerReferences?.find(({ controller }) => controller);
