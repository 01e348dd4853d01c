/**
 * Jobs of both kinds that write to the same place, as copies of a manifest do. Two gangs would destroy each other's
 * checkpoints, so a place has one owner, and other jobs wait.
 *
 * The owner is the job whose pods may still run, even if it was deleted; else the job that comes first in a total
 * order. So no two jobs ever wait for each other: a job with pods waits for none, and among the others only the later
 * waits for the earlier. A FaceTrainJob and its QuantizeJob take one place in that order and never wait for each other.
 *
 * Places are compared by text, with their namespace: planner/src/written-places.ts says which they are. A place inside
 * another counts as the same.
 */
import { placesAbove } from '@facetrain/api';
import { isIgnored } from '@facetrain/planner/attempt';
import { findCondition, isTrue } from '@facetrain/planner/conditions';
import { Annotation, type JobKind, Label } from '@facetrain/planner/names';
import { ConditionType, Reason } from '@facetrain/planner/reasons';
import { type OutputFolders, quantizerPlaces, trainerPlaces } from '@facetrain/planner/written-places';
import type { Cache, Index } from '../runtime/cache.ts';
import { controllerOf, type KubernetesObject, keyOf } from '../runtime/resource.ts';
import { identityOf, isPodAlive } from './observe.ts';
import type { JobObject, PodObject } from './resources.ts';

/** Places of a pod's annotation that are read, and their longest text. Anybody who may create pods can write them. */
const MAX_PLACES = 16;
const MAX_PLACE_LENGTH = 2048;
/** Folders above such a place by which it is found, the nearest ones: each is an entry of an index. */
const MAX_FOLDERS_ABOVE = 64;

/** Indexes of a cache: `writes` by each place that an object writes to, `writesBelow` by each place above these. */
function placeIndexes<T extends KubernetesObject>(placesOf: (object: T) => string[], maxAbove = Infinity) {
  const scoped = (object: T): string[] => {
    try {
      return placesOf(object).map((place) => inNamespace(place, object.metadata.namespace!));
    } catch {
      return []; // Not as our planner writes it.
    }
  };
  return {
    writes: scoped,
    writesBelow: (object) => [...new Set(scoped(object).flatMap((place) => placesAbove(place).slice(0, maxAbove)))],
  } satisfies Record<string, Index<T>>;
}

/** A path of the node belongs to no namespace. All other names mean something else in another namespace. */
const inNamespace = (place: string, namespace: string): string =>
  place.startsWith('hostpath://') ? place : `${namespace} ${place}`;

// Specs in the caches have passed the API server's schema and are not parsed yet.
export const faceTrainJobPlaces = placeIndexes<JobObject>(({ spec }) =>
  trainerPlaces(spec as unknown as OutputFolders),
);
export const quantizeJobPlaces = placeIndexes<JobObject>(({ spec }) =>
  quantizerPlaces(spec as unknown as Parameters<typeof quantizerPlaces>[0]),
);
export const podPlaces = placeIndexes<PodObject>(({ metadata }) => {
  const text = metadata.annotations?.[Annotation.writesTo];
  const places: unknown = text === undefined ? [] : JSON.parse(text);
  if (!Array.isArray(places) || places.length > MAX_PLACES) return [];
  return places.filter((place): place is string => typeof place === 'string' && place.length <= MAX_PLACE_LENGTH);
}, MAX_FOLDERS_ABOVE);
const PLACES = { FaceTrainJob: faceTrainJobPlaces, QuantizeJob: quantizeJobPlaces };

interface Caches extends Record<JobKind, Cache<JobObject>> {
  Pod: Cache<PodObject>;
}

export class SharedFolders {
  readonly #caches: Caches;
  /** Uids of jobs whose pods are being created; the cache may not have any of these yet. */
  readonly #starting = new Set<string>();

  constructor(caches: Caches) {
    this.#caches = caches;
  }

  /**
   * To be called with each plan, and in the same turn of the event loop as `jobsBefore`, so that of two jobs that could
   * both begin the one that is planned second finds the first.
   */
  setStarting(uid: string, isStarting: boolean): void {
    if (isStarting) this.#starting.add(uid);
    else this.#starting.delete(uid);
  }

  /**
   * What must end before this job may begin, those with pods first.
   *
   * @returns phrases: kind and name of a job (with the namespace, where it is another), or a pod of a deleted job
   */
  jobsBefore(kind: JobKind, job: JobObject): string[] {
    const places = PLACES[kind].writes(job);
    const { namespace } = job.metadata;
    const nameIn = (kindOfJob: string, owner: { namespace?: string; name: string }) =>
      `${kindOfJob} ${owner.namespace === namespace ? '' : `${owner.namespace}/`}${owner.name}`;
    const head = this.#headOf(job);
    const running: string[] = [];
    const earlier: string[] = [];
    for (const otherKind of ['FaceTrainJob', 'QuantizeJob'] as const)
      for (const other of overlapping(this.#caches[otherKind], places)) {
        const otherHead = this.#headOf(other);
        if (otherHead.metadata.uid === head.metadata.uid) continue;
        if (this.#isRunning(other)) running.push(nameIn(otherKind, other.metadata));
        else if (mayStart(other) && comesBefore(otherHead, head)) earlier.push(nameIn(otherKind, other.metadata));
      }
    for (const pod of overlapping(this.#caches.Pod, places)) {
      const { name, namespace: of, labels = {} } = pod.metadata;
      if (!isPodAlive(pod)) continue;
      const owner = this.#jobOf(pod);
      if (owner === undefined) {
        const pod = of === namespace ? name : `${of}/${name}`;
        running.push(`pod ${pod} of the deleted ${labels[Label.jobKind]} ${labels[Label.jobName]}`);
      } else if (this.#headOf(owner).metadata.uid !== head.metadata.uid)
        running.push(nameIn(labels[Label.jobKind]!, owner.metadata));
    }
    return [...new Set([...running, ...earlier])];
  }

  /**
   * Calls the listener when a job or a pod gives up the places that it may have held, with each job that waits for one
   * of them. To be called before the caches run.
   */
  onRelease(listener: (kind: JobKind, key: string) => void): void {
    const tell = (places: string[]) => {
      for (const kind of ['FaceTrainJob', 'QuantizeJob'] as const)
        for (const job of overlapping(this.#caches[kind], places)) if (isWaiting(job)) listener(kind, keyOf(job));
    };
    for (const kind of ['FaceTrainJob', 'QuantizeJob'] as const)
      this.#caches[kind].onChange(({ object, old, deleted }) => {
        if (old && mayStart(old) && (deleted || !mayStart(object))) tell(PLACES[kind].writes(old));
      });
    this.#caches.Pod.onChange(({ object, old, deleted }) => {
      if (old && isPodAlive(old) && (deleted || !isPodAlive(object))) tell(podPlaces.writes(old));
    });
  }

  /** The job that a pod belongs to; undefined if it was deleted. */
  #jobOf({ metadata: { namespace, labels = {} } }: PodObject): JobObject | undefined {
    const [kind, name] = [labels[Label.jobKind], labels[Label.jobName]];
    if ((kind !== 'FaceTrainJob' && kind !== 'QuantizeJob') || name === undefined) return undefined;
    const job = this.#caches[kind].get(keyOf({ metadata: { namespace: namespace!, name } }));
    return job?.metadata.uid === labels[Label.jobUid] ? job : undefined;
  }

  /** The FaceTrainJob that made this QuantizeJob; else the job itself. */
  #headOf(job: JobObject): JobObject {
    const namespace = job.metadata.namespace!;
    const owner = controllerOf(job);
    if (owner?.kind !== 'FaceTrainJob') return job;
    const parent = this.#caches.FaceTrainJob.get(keyOf({ metadata: { namespace, name: owner.name } }));
    return parent?.metadata.uid === owner.uid ? parent : job;
  }

  #isRunning({ metadata: { uid } }: JobObject): boolean {
    return this.#starting.has(uid) || this.#caches.Pod.indexed('job', uid).some(isPodAlive);
  }
}

/** The objects that write to one of the places, to a place inside of it, or to a place that contains it. */
function overlapping<T extends KubernetesObject>(cache: Cache<T>, places: string[]): Set<T> {
  return new Set(
    places.flatMap((place) => [
      ...[place, ...placesAbove(place)].flatMap((one) => cache.indexed('writes', one)),
      ...cache.indexed('writesBelow', place),
    ]),
  );
}

/** As the status says. A status that is only being written says it soon, and then the job is planned again at once. */
const isWaiting = ({ status }: JobObject): boolean =>
  findCondition(status?.conditions, ConditionType.ready)?.reason === Reason.outputInUse;

/** A job that is suspended or stalled could wait for ever, so others do not wait for it. */
export function mayStart(job: JobObject): boolean {
  const { spec, status = {} } = job;
  if (isIgnored({ identity: identityOf(job), spec })) return false;
  // One that has trained and whose pods the API server refuses for the moment asks again by itself: it keeps its
  // folder.
  const isStuck =
    isTrue(status.conditions, ConditionType.stalled) && !(status.refusal !== undefined && (status.attempt ?? 0) > 0);
  return status.completionTime === undefined && spec.suspend !== true && !isStuck;
}

/** A total order: jobs that have begun (and wait to restart), then by age. */
const comesBefore = (one: JobObject, other: JobObject): boolean =>
  hasBegun(one) === hasBegun(other) ? isOlder(one, other) : hasBegun(one);

/** By creationTimestamp, which has whole seconds; then by uid, so that of two jobs exactly one is older. */
export const isOlder = ({ metadata: one }: JobObject, { metadata: other }: JobObject): boolean =>
  one.creationTimestamp === other.creationTimestamp
    ? one.uid < other.uid
    : one.creationTimestamp < other.creationTimestamp;

/** status.startTime is removed by a suspension. */
const hasBegun = ({ status }: JobObject): boolean =>
  status?.startTime !== undefined && status.completionTime === undefined;
