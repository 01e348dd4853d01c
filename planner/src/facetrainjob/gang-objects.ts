/** The objects of an attempt of a FaceTrainJob, in the order of creation: pods last, after all that they need. */
import { ELASTIC_FIELD, FaceTrainJobSpec, TRAINING_FIELDS, TrainerConfig, withoutDefaults } from '@facetrain/api';
import { fieldsDigest, specDigest } from '../attempt.ts';
import type { Blocker } from '../blocker.ts';
import type { Child } from '../children.ts';
import { makeConfigMap } from '../config-map.ts';
import { restartRules } from '../container-restarts.ts';
import type { Environment } from '../environment.ts';
import { Annotation, attemptName, CONTAINER, childMetadata, Label, podName, selectorLabels } from '../names.ts';
import type { ConfigMap, NetworkPolicy, Pod, Service } from '../objects.ts';
import type { JobIdentity, ObservedObject } from '../observed.ts';
import type { Action } from '../plan.ts';
import { makePod, type PodParts, progressServer, templateConflict } from '../pod.ts';
import { allStorage as allQuantizerStorage, quantizerStorage } from '../quantizer-storage.ts';
import { type PodPlacement, placed } from '../queue.ts';
import { Reason } from '../reasons.ts';
import type { QueuedGang } from '../workload.ts';
import { trainerPlaces } from '../written-places.ts';
import { quantizerData } from './child-quantizejob.ts';
import { type Gang, gangConflict, joinGroup, podGroup } from './gang.ts';
import { allStorage, type TrainerStorage, trainerConfig, trainerStorage } from './make-trainer-config.ts';
import { nearOthers } from './topology.ts';

/** All that the objects of an attempt depend on. */
export interface Attempt {
  job: JobIdentity;
  spec: FaceTrainJobSpec;
  attempt: number;
  /** Number of pods. */
  size: number;
  gang: Gang;
  /** The kubelet may start trainers again in their pods: container-restarts.ts. */
  restartsTrainers?: boolean;
  environment: Environment;
  /** Where Kueue wants a pod, by its number; absent without a queue. */
  placement?: (number: number) => PodPlacement;
}

/** The objects that must exist while the attempt runs. They are made only if they are missing. */
export function childrenOf(context: Attempt): Child[] {
  const { job, spec, attempt, size, gang, environment } = context;
  const storage = trainerStorage(spec, environment);
  const name = attemptName('FaceTrainJob', job, attempt);
  const ranks = Array.from({ length: size }, (_, rank) => rank);
  const digest = trainingDigest(spec);
  return [
    { kind: 'Service', name: job.name, make: () => service(job, spec) },
    ...(spec.networkPolicy.enabled
      ? [{ kind: 'NetworkPolicy' as const, name: job.name, make: () => networkPolicy(job, spec) }]
      : []),
    { kind: 'ConfigMap', name, make: () => configMap(context, storage, digest) },
    ...(gang.mode === 'grouped'
      ? [
          {
            kind: 'PodGroup' as const,
            apiVersion: gang.apiVersion,
            name,
            make: () => podGroup(job, attempt, spec, gang),
          },
        ]
      : []),
    ...ranks.map((rank) => ({
      kind: 'Pod' as const,
      name: podName('FaceTrainJob', job, attempt, rank),
      rank,
      make: () => pod(context, storage, digest, rank),
    })),
  ];
}

/** The gang for which a job with a queue asks quota; null: it has no queue. */
export function queuedGang(context: Attempt): QueuedGang | null {
  const { placement: _, ...placed } = context;
  const unplaced = { ...placed, restartsTrainers: false };
  const { spec, environment } = unplaced;
  if (spec.queue === undefined) return null;
  return {
    queue: spec.queue,
    count: spec.trainers.replicas,
    minCount: spec.trainers.elastic?.minReplicas,
    pod: pod(unplaced, trainerStorage(spec, environment), trainingDigest(spec), 0),
    topology: spec.gang.topology,
    tolerations: spec.trainers.podTemplate?.spec?.tolerations ?? [],
  };
}

/** Checks what the schema cannot check: what the cluster serves, and whether all of the pod template has an effect. */
export function findConflict({ spec, gang, environment }: Attempt): Blocker | null {
  return (
    gangConflict(gang, spec) ??
    templateConflict('spec.trainers', spec.trainers, allStorage(trainerStorage(spec, environment))) ??
    // Before the training, not after days of it.
    (spec.quantize ? quantizerConflict(spec, spec.quantize, environment) : null)
  );
}

function quantizerConflict(
  spec: FaceTrainJobSpec,
  template: NonNullable<FaceTrainJobSpec['quantize']>,
  environment: Environment,
): Blocker | null {
  const data = quantizerData(spec, template);
  const storage = allQuantizerStorage(quantizerStorage(data, template.quantizer, environment));
  return templateConflict('spec.quantize.quantizer', template.quantizer, storage, data.output);
}

const digests = new WeakMap<FaceTrainJobSpec, string>();

/** Cached by the identity of the spec, which is never changed in place. */
export function trainingDigest(spec: FaceTrainJobSpec): string {
  const known = digests.get(spec);
  if (known !== undefined) return known;
  // The number of ranks of an elastic gang is in the status: a change is no other training.
  const fields = spec.trainers.elastic ? TRAINING_FIELDS.filter((field) => field !== ELASTIC_FIELD) : TRAINING_FIELDS;
  const digest = fieldsDigest(withoutDefaults(FaceTrainJobSpec, spec), fields);
  digests.set(spec, digest);
  return digest;
}

/**
 * Headless, for the host name of rank 0, where all ranks meet and where progress is served. The other ranks tell each
 * other their addresses there. They are not selected: the controllers of Endpoints and EndpointSlices write both
 * objects again for every selected pod that starts or ends. A rank is ready only after the rendezvous, so the address
 * must be published before.
 */
function service(job: JobIdentity, { trainers }: FaceTrainJobSpec): Service {
  const spec: Service['spec'] = {
    clusterIP: 'None',
    publishNotReadyAddresses: true,
    selector: { ...selectorLabels(job), [Label.rank]: '0' },
    ports: [
      // Service meshes guess the protocol of a port that names none.
      { name: 'rendezvous', port: trainers.rendezvousPort, appProtocol: 'tcp' },
      { name: 'progress', port: trainers.progressPort, appProtocol: 'http' },
    ],
  };
  return {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: childMetadata('FaceTrainJob', job, job.name, { [Label.specDigest]: specDigest(spec) }),
    spec,
  };
}

/**
 * Collectives use ephemeral ports, so all ports are open to the job's own pods, and only the progress port to other
 * pods.
 */
function networkPolicy(job: JobIdentity, { trainers }: FaceTrainJobSpec): NetworkPolicy {
  const spec: NetworkPolicy['spec'] = {
    podSelector: { matchLabels: selectorLabels(job) },
    policyTypes: ['Ingress'],
    ingress: [
      { from: [{ podSelector: { matchLabels: selectorLabels(job) } }] },
      { ports: [{ protocol: 'TCP', port: trainers.progressPort }] },
    ],
  };
  const metadata = childMetadata('FaceTrainJob', job, job.name, { [Label.specDigest]: specDigest(spec) });
  return { apiVersion: 'networking.k8s.io/v1', kind: 'NetworkPolicy', metadata, spec };
}

const networks = new WeakMap<FaceTrainJobSpec, { uid: string; objects: [Service, NetworkPolicy] }>();

/** Kept for each spec: every plan of a running job compares their digests. */
function networkObjects(job: JobIdentity, spec: FaceTrainJobSpec): [Service, NetworkPolicy] {
  const known = networks.get(spec);
  if (known?.uid === job.uid) return known.objects;
  const objects: [Service, NetworkPolicy] = [service(job, spec), networkPolicy(job, spec)];
  networks.set(spec, { uid: job.uid, objects });
  return objects;
}

/**
 * Updates of the Service and the NetworkPolicy, which outlive attempts, to the current spec. They are outdated if the
 * spec was changed while the job was suspended, or if another version of the operator made them. An executor that keeps
 * no labels (that of processes) has no specs that change.
 */
export function networkUpdates({ job, spec }: Attempt, objects: ObservedObject[]): Action[] {
  const actions: Action[] = [];
  for (const wanted of networkObjects(job, spec)) {
    const { kind, metadata } = wanted;
    const existing = objects.find((object) => object.kind === kind && object.name === metadata.name && object.owned);
    if (!existing) continue;
    const { name, uid, specDigest: digest } = existing;
    if (kind === 'NetworkPolicy' && !spec.networkPolicy.enabled)
      actions.push({ type: 'delete', kind, name, uid, reason: Reason.notWanted });
    else if (digest !== undefined && digest !== metadata.labels[Label.specDigest]) {
      actions.push({
        type: 'patch',
        kind,
        name,
        uid,
        spec: { ...wanted.spec },
        labels: { [Label.specDigest]: metadata.labels[Label.specDigest]! },
      });
    }
  }
  return actions;
}

function configMap({ job, spec, attempt, environment }: Attempt, storage: TrainerStorage, digest: string): ConfigMap {
  const config = trainerConfig(job, spec, attempt, storage, environment);
  return makeConfigMap('FaceTrainJob', job, attempt, TrainerConfig, config, digest);
}

function pod(
  { job, spec, attempt, size, gang, restartsTrainers, environment, placement }: Attempt,
  storage: TrainerStorage,
  digest: string,
  number: number,
): Pod {
  const { trainers } = spec;
  const name = podName('FaceTrainJob', job, attempt, number);
  const gangName = attemptName('FaceTrainJob', job, attempt);
  const master = environment.master(job, attempt, trainers.rendezvousPort);
  const parts: PodParts = {
    metadata: childMetadata('FaceTrainJob', job, name, {
      [Label.attempt]: String(attempt),
      [Label.rank]: String(number),
      ...(trainers.elastic && { [Label.gangSize]: String(size) }),
      [Label.specDigest]: digest,
    }),
    fields: trainers,
    nodeLostSeconds: spec.failurePolicy.nodeLostSeconds,
    args: trainers.ranksPerPod === 1 ? ['train'] : ['train', '--ranks', String(trainers.ranksPerPod)],
    env: [
      // Of the pod's first rank. With several, `--ranks` starts a process for each, which gets its own.
      { name: 'RANK', value: String(number * trainers.ranksPerPod) },
      { name: 'WORLD_SIZE', value: String(size * trainers.ranksPerPod) },
      // A rank sees only the devices of its pod.
      { name: 'LOCAL_RANK', value: '0' },
      ...(trainers.ranksPerPod > 1 ? [{ name: 'LOCAL_WORLD_SIZE', value: String(trainers.ranksPerPod) }] : []),
      { name: 'MASTER_ADDR', value: master.host },
      { name: 'MASTER_PORT', value: String(master.port) },
    ],
    storage: allStorage(storage),
    config: { name: gangName, directory: environment.configDirectory(gangName) },
    writesTo: trainerPlaces(spec),
    labels: MESH_LABELS,
    annotations: meshAnnotations(trainers.rendezvousPort),
    container: { ...(number === 0 && serverOf(trainers)), ...(restartsTrainers && restartRules(spec, environment)) },
    network: { hostname: name, subdomain: job.name },
  };
  const grouped = joinGroup(makePod(parts, environment), gang, gangName, spec);
  return placed(nearOthers(grouped, spec), placement?.(number) ?? {});
}

/**
 * Only rank 0 serves progress and the rendezvous. Both ports are listed: of pods in the node's network
 * (`hostNetwork`), kube-scheduler then places no two on a node that want the same port.
 */
function serverOf({ progressPort, rendezvousPort }: FaceTrainJobSpec['trainers']): NonNullable<PodParts['container']> {
  const { ports, ...probes } = progressServer(progressPort);
  return { ports: [...ports, { name: 'rendezvous', containerPort: rendezvousPort }], ...probes };
}

/** Linux' default of net.ipv4.ip_local_port_range: where ranks listen for each other's collectives. */
const EPHEMERAL_PORTS = '32768-60999';

/**
 * Keeps the proxies of service meshes out of the traffic between ranks. Istio (istio.io, Resource Annotations) and
 * Linkerd (linkerd.io, Proxy Configuration) know of a connection's port only what a Service lists, and collectives use
 * ports that none lists; where a mesh demands mTLS, it refuses them. So nothing that comes in passes a proxy: the
 * NetworkPolicy says who may connect. What goes out does, but for the rendezvous: object stores may be in the mesh.
 */
const meshAnnotations = (rendezvousPort: number): Record<string, string> => ({
  'traffic.sidecar.istio.io/includeInboundPorts': '',
  'traffic.sidecar.istio.io/excludeOutboundPorts': String(rendezvousPort),
  'config.linkerd.io/skip-inbound-ports': '1-65535',
  'config.linkerd.io/skip-outbound-ports': `${rendezvousPort},${EPHEMERAL_PORTS}`,
});

/**
 * Other proxies of Istio would take the injected one for a reason to speak mTLS, also to the progress port, where it is
 * bypassed. The injector keeps the label if a pod has it (istio.io, Resource Labels). In ambient mode there is no
 * sidecar, and no annotation counts: the proxy of the node would take all connections, so the pod stays out.
 */
const MESH_LABELS = { 'security.istio.io/tlsMode': 'disabled', 'istio.io/dataplane-mode': 'none' };

/**
 * Pods that hold places for ranks that an elastic gang lacks (elastic.ts). Each asks the scheduler for what a trainer
 * asks for, and is then idle: it fetches nothing, runs no init container of the template but sidecars, and ends within
 * a second. It is in no PodGroup of kube-scheduler, which is that of the gang. KAI Scheduler and Volcano place no pod
 * without a group: there it is a member of the gang's beyond those that the group needs.
 */
export function placeholdersOf(context: Attempt, ranks: number[]): Pod[] {
  const { job, attempt } = context;
  const storage = trainerStorage(context.spec, context.environment);
  const isOfOtherScheduler = context.gang.mode === 'grouped' && context.gang.reader !== 'Native';
  const gang: Gang = isOfOtherScheduler ? context.gang : { mode: 'none' };
  return ranks.map((rank) => {
    const { metadata, spec, ...rest } = pod({ ...context, gang, restartsTrainers: false }, storage, '', rank);
    const { [Label.specDigest]: _, ...labels } = metadata.labels;
    const { [Annotation.writesTo]: __, ...annotations } = metadata.annotations ?? {};
    const { initContainers = [], ...others } = spec;
    const sidecars = initContainers.filter((container) => isSidecar(container));
    return {
      ...rest,
      metadata: {
        ...metadata,
        name: podName('FaceTrainJob', job, attempt, rank),
        labels: { ...labels, [Label.placeholder]: 'true' },
        annotations,
      },
      spec: {
        ...others,
        ...(sidecars.length > 0 && { initContainers: sidecars }),
        terminationGracePeriodSeconds: 1,
        containers: spec.containers.map((container) =>
          container.name === CONTAINER ? { ...container, args: ['hold-place'] } : container,
        ),
      },
    };
  });
}

const isSidecar = (container: object): boolean => (container as { restartPolicy?: unknown }).restartPolicy === 'Always';
