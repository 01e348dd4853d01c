/**
 * `gang.topology`: the ranks of a gang run near each other, on nodes with the same value of a label.
 *
 * In a queue, Kueue chooses the nodes (its Topology Aware Scheduling): the Workload asks for it (queue.ts), and an
 * annotation tells Kueue's controller which pods wait for their nodes. Without a queue, every pod has an affinity to
 * the others, and the PodGroup of a required topology has a constraint.
 *
 * The constraint alone is not enough. An API server without the feature TopologyAwareWorkloadScheduling (alpha in 1.37)
 * drops the field and says nothing (dropDisabledSchedulingConstraintsFields). The affinity alone is worse: the first
 * pod decides where all others go, also where there is no room for all.
 */
import type { FaceTrainJobSpec, Topology } from '@facetrain/api';
import { Label } from '../names.ts';
import type { Pod } from '../objects.ts';
import { TopologyAnnotation } from '../queue.ts';

/** The label whose value all nodes of the gang share by its PodGroup. */
export const requiredTopologyKey = ({ gang, queue }: FaceTrainJobSpec): string | undefined =>
  queue === undefined ? gang.topology?.required : undefined;

/** @returns the pod of a gang, near the other pods of its attempt */
export function nearOthers(pod: Pod, { gang: { topology }, queue }: FaceTrainJobSpec): Pod {
  if (topology === undefined) return pod;
  const { metadata, spec } = pod;
  if (queue !== undefined)
    return { ...pod, metadata: { ...metadata, annotations: { ...metadata.annotations, ...annotations(topology) } } };
  return { ...pod, spec: { ...spec, affinity: withAffinity(spec.affinity, topology, metadata.labels) } };
}

function annotations({ required, preferred }: Topology): Record<string, string> {
  return {
    ...(required !== undefined && { [TopologyAnnotation.required]: required }),
    ...(preferred !== undefined && { [TopologyAnnotation.preferred]: preferred }),
  };
}

type Loose = Record<string, unknown>;

const REQUIRED = 'requiredDuringSchedulingIgnoredDuringExecution';
const PREFERRED = 'preferredDuringSchedulingIgnoredDuringExecution';
/** The largest weight of a preference. */
const WEIGHT = 100;

/**
 * @param affinity of the user's pod template; it is kept
 * @param labels of the pod. Pods of an older attempt may still be ending elsewhere, so the attempt counts. Placeholders
 * of an elastic gang have the same labels.
 */
function withAffinity(
  affinity: Loose = {},
  { required, preferred }: Topology,
  labels: Record<string, string>,
): Record<string, unknown> {
  const matchLabels = Object.fromEntries([Label.jobUid, Label.attempt].map((label) => [label, labels[label]!]));
  const near = (topologyKey: string) => ({ topologyKey, labelSelector: { matchLabels } });
  const podAffinity = (affinity.podAffinity ?? {}) as Record<string, Loose[] | undefined>;
  const added = (field: string, terms: Loose[]) =>
    terms.length > 0 && { [field]: [...(podAffinity[field] ?? []), ...terms] };
  return {
    ...affinity,
    podAffinity: {
      ...podAffinity,
      ...added(REQUIRED, required === undefined ? [] : [near(required)]),
      ...added(PREFERRED, preferred === undefined ? [] : [{ weight: WEIGHT, podAffinityTerm: near(preferred) }]),
    },
  };
}
