/**
 * What must hold at every moment, checked on what etcd has stored: every change of every object, in the order in which
 * it was made. An API server that was killed has lost nothing of it. Who wrote is only in the audit log (audit.ts).
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { FaceTrainJobStatus } from '@facetrain/api';
import { isPodAlive } from '@facetrain/operator/controllers/observe';
import type { JobObject, PodObject, WorkloadObject } from '@facetrain/operator/controllers/resources';
import type { KubernetesObject } from '@facetrain/operator/runtime/resource';
import { CONTAINER, Label } from '@facetrain/planner/names';

/** A change of an object. */
export interface StoredChange {
  revision: number;
  kind: 'pods' | 'facetrainjobs' | 'quantizejobs' | 'workloads';
  /** namespace/name */
  key: string;
  /** null: it was deleted. */
  object: KubernetesObject | null;
}

const PREFIXES = {
  pods: '/registry/pods/',
  facetrainjobs: '/registry/facetrain.dev/facetrainjobs/',
  quantizejobs: '/registry/facetrain.dev/quantizejobs/',
  workloads: '/registry/kueue.x-k8s.io/workloads/',
} as const;

interface EtcdEvent {
  type?: 'PUT' | 'DELETE';
  kv: { key: string; value?: string; mod_revision: string };
}

const base64 = (text: string): string => Buffer.from(text).toString('base64');
const decoded = (text: string): string => Buffer.from(text, 'base64').toString('utf8');

const post = (etcd: string, path: string, body: object, signal?: AbortSignal) =>
  fetch(`${etcd}${path}`, { method: 'POST', body: JSON.stringify(body), ...(signal && { signal }) });
const RANGE = { key: base64('/registry/'), range_end: base64('/registry0') };
/** Until etcd, which may be away, is asked again. */
const RETRY_MILLISECONDS = 100;

/**
 * Follows what etcd stores, which must be JSON, from the first revision on. etcd may be restarted meanwhile, and may be
 * compacted up to `revision`.
 */
export class StoredHistory {
  readonly #etcd: string;
  readonly #onChange: (change: StoredChange) => void;
  readonly #abort = new AbortController();
  readonly #ended: Promise<void>;
  #revision = 0;

  /** @param etcd base URL */
  constructor(etcd: string, onChange: (change: StoredChange) => void) {
    this.#etcd = etcd;
    this.#onChange = onChange;
    this.#ended = this.#run();
    this.#ended.catch(() => {}); // catchUp throws it.
  }

  /** All changes up to this revision were passed on. */
  get revision(): number {
    return this.#revision;
  }

  /** Returns when all changes of now were passed on. @throws if etcd was compacted beyond `revision` */
  async catchUp(): Promise<void> {
    const answer = await post(this.#etcd, '/v3/kv/range', { ...RANGE, keys_only: true, limit: 1 });
    const { header } = (await answer.json()) as { header: { revision: string } };
    while (this.#revision < Number(header.revision))
      await Promise.race([delay(RETRY_MILLISECONDS), this.#ended.then(() => Promise.reject(new Error('stopped')))]);
  }

  /** Drops what etcd keeps of former revisions, as an API server does every five minutes. */
  async compact(): Promise<void> {
    const { ok, status } = await post(this.#etcd, '/v3/kv/compaction', { revision: String(this.#revision) });
    if (!ok) throw new Error(`etcd answers ${status}`);
  }

  async stop(): Promise<void> {
    this.#abort.abort();
    await this.#ended.catch(() => {});
  }

  async #run(): Promise<void> {
    const { signal } = this.#abort;
    while (!signal.aborted) {
      try {
        await this.#follow(signal);
      } catch (error) {
        if (error instanceof Compacted) throw error;
      }
      await delay(RETRY_MILLISECONDS);
    }
  }

  async #follow(signal: AbortSignal): Promise<void> {
    const create_request = { ...RANGE, start_revision: this.#revision + 1 };
    const answer = await post(this.#etcd, '/v3/watch', { create_request }, signal);
    let rest = '';
    const decoder = new TextDecoder();
    for await (const chunk of answer.body!) {
      const lines = (rest + decoder.decode(chunk, { stream: true })).split('\n');
      rest = lines.pop()!;
      for (const line of lines) if (line !== '') this.#read(line);
    }
  }

  #read(line: string): void {
    const { result } = JSON.parse(line) as {
      /** Absent in the line with the error by which the watch ends. */
      result?: { events?: EtcdEvent[]; compact_revision?: string };
    };
    if (result?.compact_revision) throw new Compacted(`etcd was compacted at ${result.compact_revision}`);
    const events = result?.events ?? [];
    for (const { type = 'PUT', kv } of events) {
      const key = decoded(kv.key);
      const kind = (Object.keys(PREFIXES) as StoredChange['kind'][]).find((one) => key.startsWith(PREFIXES[one]));
      if (kind === undefined) continue;
      this.#onChange({
        revision: Number(kv.mod_revision),
        kind,
        key: key.slice(PREFIXES[kind].length),
        object: type === 'DELETE' ? null : (JSON.parse(decoded(kv.value!)) as KubernetesObject),
      });
    }
    // All events of a revision are in one line.
    if (events.length > 0) this.#revision = Number(events.at(-1)!.kv.mod_revision);
  }
}

class Compacted extends Error {}

interface PodState {
  name: string;
  jobUid: string;
  attempt: number;
  rank: number;
  world: number;
  isAlive: boolean;
  isReady: boolean;
  hasSucceeded: boolean;
  /** How often its container was started again. */
  restarts: number;
}

/** A pod, or a placeholder, that has its quota by a Workload. */
interface QueuedPod {
  name: string;
  /** Key of its Workload. */
  workload: string;
  isAlive: boolean;
}

/** The checks of pods, statuses and quota. Give it the changes in their order. */
export class HistoryCheck {
  readonly violations: string[] = [];
  /** How many changes were checked, by kind. */
  readonly changes = { pods: 0, facetrainjobs: 0, quantizejobs: 0, workloads: 0 };
  /** For so many pods Kueue has quota, over all jobs. */
  readonly #quota: number;
  /**
   * How often Kueue lent more than it has. After its start, and after a write of its own whose answer was lost, it does
   * not know of all that is lent. The operator has to keep to what is lent.
   */
  overlent = 0;
  readonly #queued = new Map<string, QueuedPod>();
  /** For how many pods each Workload has quota. */
  readonly #lent = new Map<string, number>();
  readonly #pods = new Map<string, PodState>();
  readonly #jobs = new Map<string, { uid: string; status: FaceTrainJobStatus }>();
  /** Attempts of which all ranks were ready, or had succeeded, at one moment. */
  readonly #whole = new Set<string>();
  /** Number of ranks of each attempt, as the first of its pods has it. */
  readonly #worlds = new Map<string, number>();
  /** Ranks that succeeded, of each attempt. */
  readonly #succeeded = new Map<string, Set<number>>();

  constructor(quota = Infinity) {
    this.#quota = quota;
  }

  next({ revision, kind, key, object }: StoredChange): void {
    this.changes[kind]++;
    const where = `revision ${revision}: ${kind} ${key}`;
    if (kind === 'pods') {
      this.#queuedPod(where, key, object as PodObject | null);
      this.#pod(where, key, object as PodObject | null);
    } else if (kind === 'workloads') this.#workload(where, key, object as WorkloadObject | null);
    else this.#job(where, kind, key, object as JobObject | null);
  }

  /** No pod is created, and none lives, without quota. */
  #queuedPod(where: string, key: string, object: PodObject | null): void {
    const name = object && workloadOf(object);
    if (object === null || name === undefined) return void this.#queued.delete(key);
    const workload = `${object.metadata.namespace}/${name}`;
    const isNew = !this.#queued.has(key);
    this.#queued.set(key, { name: object.metadata.name, workload, isAlive: isPodAlive(object) });
    if (!isNew) return;
    this.#checkQuota(where, workload);
  }

  #workload(where: string, key: string, object: WorkloadObject | null): void {
    const before = this.#lentInAll();
    this.#lent.set(key, object === null ? 0 : lentBy(object));
    this.#checkQuota(where, key);
    const lent = this.#lentInAll();
    if (lent > before && lent > this.#quota) this.overlent++;
  }

  #lentInAll(): number {
    return [...this.#lent.values()].reduce((sum, count) => sum + count, 0);
  }

  /** An elastic gang has several Workloads. Its pods are counted together, as it may lose any of them. */
  #checkQuota(where: string, workload: string): void {
    const job = firstOf(workload);
    const alive = [...this.#queued.values()].filter((pod) => firstOf(pod.workload) === job && pod.isAlive);
    const ofJob = [...this.#lent].filter(([key]) => firstOf(key) === job);
    const lent = ofJob.reduce((sum, [, count]) => sum + count, 0);
    if (alive.length > lent)
      this.violations.push(`${where}: ${alive.map(({ name }) => name)} lived, and ${job} has quota for ${lent}`);
  }

  #alive(jobUid: string): PodState[] {
    return [...this.#pods.values()].filter((pod) => pod.jobUid === jobUid && pod.isAlive);
  }

  #pod(where: string, key: string, object: PodObject | null): void {
    const labels = object?.metadata.labels;
    const jobUid = labels?.[Label.jobUid];
    // A placeholder holds a place for a trainer: it does nothing that another attempt could disturb.
    if (object === null || jobUid === undefined || labels?.[Label.placeholder] === 'true')
      return void this.#pods.delete(key);
    const phase = object.status?.phase ?? 'Pending';
    const attempt = Number(labels![Label.attempt]);
    const pod: PodState = {
      name: object.metadata.name,
      jobUid,
      attempt,
      rank: Number(labels![Label.rank]),
      world: worldOf(object),
      isAlive: isPodAlive(object),
      isReady:
        phase === 'Running' &&
        (object.status?.conditions ?? []).some(({ type, status }) => type === 'Ready' && status === 'True'),
      hasSucceeded: phase === 'Succeeded',
      restarts: object.status?.containerStatuses?.find(({ name }) => name === CONTAINER)?.restartCount ?? 0,
    };
    const name = `${jobUid}/${attempt}`;
    if (!this.#pods.has(key)) {
      // An attempt that was never whole, and of which no pod is left, is made anew for the size that is asked for now:
      // a quota had refused a rank of it, the others were deleted, and then people scaled the job. The planner's
      // `gangSize` has the size from the pods or, once all were created, from the status. Nothing of the old size can
      // go on: such an attempt has trained nothing, its config.json does not name the size, and a process that outlives
      // its pod does not meet the others, since the name under which ranks meet has the size
      // (trainer-image/src/train/session.ts).
      const isFixed = this.#whole.has(name) || [...this.#pods.values()].some((one) => isOfGang(one, pod));
      const world = (isFixed ? this.#worlds.get(name) : undefined) ?? pod.world;
      this.#worlds.set(name, world);
      if (world !== pod.world) this.violations.push(`${where}: WORLD_SIZE ${pod.world} in a gang of ${world}`);
      const older = this.#alive(jobUid).filter((other) => other.attempt < attempt);
      if (older.length > 0)
        this.violations.push(`${where}: attempt ${attempt} began while ${older.map(({ name }) => name)} lived`);
      const job = [...this.#jobs.values()].find(({ uid }) => uid === jobUid);
      if (job && attempt > (job.status.attempt ?? 0))
        this.violations.push(`${where}: created for attempt ${attempt}, and the status says ${job.status.attempt}`);
    }
    this.#pods.set(key, pod);
    const gang = [...this.#pods.values()].filter((one) => isOfGang(one, pod));
    const succeeded = this.#succeeded.get(name) ?? new Set();
    if (pod.hasSucceeded) this.#succeeded.set(name, succeeded.add(pod.rank));
    const fit = new Set(gang.filter((one) => one.isReady || one.hasSucceeded).map(({ rank }) => rank));
    if (new Set([...fit, ...succeeded]).size >= pod.world) this.#whole.add(name);
  }

  #job(where: string, kind: 'facetrainjobs' | 'quantizejobs', key: string, object: JobObject | null): void {
    const id = `${kind}/${key}`;
    if (object === null) return void this.#jobs.delete(id);
    const { uid, generation = 0 } = object.metadata;
    const known = this.#jobs.get(id);
    const before = known?.uid === uid ? known.status : {};
    const status = (object.status ?? {}) as FaceTrainJobStatus;
    this.#jobs.set(id, { uid, status });
    if (JSON.stringify(status) === JSON.stringify(before)) return;
    const say = (problem: string) => this.violations.push(`${where}: ${problem}`);
    const attempt = status.attempt ?? 0;
    if (attempt < (before.attempt ?? 0)) say(`attempt ${before.attempt} became ${attempt}`);
    if ((before.phase === 'Succeeded' || before.phase === 'Failed') && status.phase !== before.phase)
      say(`phase ${before.phase} became ${status.phase}`);
    if ((status.observedGeneration ?? 0) > generation) say(`observedGeneration ${status.observedGeneration}`);
    if (status.phase === 'Running' && before.phase !== 'Running' && !this.#whole.has(`${uid}/${attempt}`))
      say(`Running, and attempt ${attempt} was never whole`);
    const [world, desired] = [this.#worlds.get(`${uid}/${attempt}`), status.trainers?.desired];
    if (status.phase === 'Running' && world !== undefined && desired !== undefined && world !== desired)
      say(`Running with ${desired} trainers, and WORLD_SIZE of attempt ${attempt} is ${world}`);
    const { elastic } = (object.spec.trainers ?? {}) as { elastic?: { minReplicas: number } };
    if (elastic && desired !== undefined && desired < elastic.minReplicas)
      say(`${desired} trainers of an elastic job that has at least ${elastic.minReplicas}`);
    const ready = status.conditions?.find(({ type }) => type === 'Ready');
    const isReady = ready?.status === 'True';
    if (ready?.reason === 'Queued') {
      const alive = this.#alive(uid);
      if (alive.length > 0) say(`Queued, and ${alive.map(({ name }) => name)} lived`);
    }
    if (status.phase === 'Suspended' && isReady) {
      const alive = this.#alive(uid);
      if (alive.length > 0) say(`Suspended and Ready, and ${alive.map(({ name }) => name)} lived`);
    }
    if (status.phase === 'Succeeded' && before.phase !== 'Succeeded' && kind === 'facetrainjobs') {
      const ranks = [...this.#succeeded].filter(([name]) => name.startsWith(`${uid}/`)).map(([, set]) => set.size);
      const world = status.trainers?.desired ?? 1;
      if (!ranks.includes(world)) say(`Succeeded, and of no attempt all ${world} ranks had`);
    }
    const { count = 0, disruptions = 0, inPlace = 0, lastReason } = status.restarts ?? {};
    // Only in pods that are being evicted: the cause is their end, which follows.
    if (lastReason === 'ContainerStatusUnknown') say(`a restart for ${lastReason}`);
    if (count + disruptions > attempt + inPlace)
      say(`${count} + ${disruptions} restarts at attempt ${attempt}, ${inPlace} of them in place`);
    const counted = status.trainers?.containerRestarts ?? 0;
    const starts = [...this.#pods.values()]
      .filter((pod) => pod.jobUid === uid && pod.attempt === attempt)
      .map(({ restarts }) => restarts);
    const countedBefore = attempt === before.attempt ? (before.trainers?.containerRestarts ?? 0) : 0;
    if (counted > countedBefore && counted > Math.max(0, ...starts))
      say(`${counted} starts in place are counted, of ${starts}`);
    if (status.phase === 'Running' && before.phase !== 'Running' && starts.some((count) => count < counted))
      say(`Running, and of ${counted} starts in place some trainers had ${starts}`);
    const [step, savedBefore] = [status.checkpoint?.step, before.checkpoint?.step];
    if (savedBefore !== undefined && step !== undefined && step < savedBefore)
      say(`checkpoint of step ${savedBefore} became ${step}`);
  }
}

/** Name of the Workload by which the pod has its quota; undefined: its job is in no queue. */
const workloadOf = ({ metadata }: PodObject): string | undefined => metadata.annotations?.['kueue.x-k8s.io/workload'];
export const isQueued = (pod: PodObject): boolean => workloadOf(pod) !== undefined;

/** The Workload with which a job begins; the others have the number of their first pod at the end of their name. */
const firstOf = (workload: string): string => workload.replace(/\.\d+$/, '');

/** For how many pods Kueue has reserved quota. */
function lentBy({ spec, status = {} }: WorkloadObject): number {
  const holds = (wanted: string) => status.conditions?.some(({ type, status }) => type === wanted && status === 'True');
  if (!holds('QuotaReserved') || holds('Finished')) return 0;
  const count = spec.podSets?.[0]?.count ?? 1;
  const reclaimable = status.reclaimablePods?.[0]?.count ?? 0;
  return Math.min(count - reclaimable, status.admission?.podSetAssignments?.[0]?.count ?? count);
}

const isOfGang = (one: PodState, { jobUid, attempt }: PodState): boolean =>
  one.jobUid === jobUid && one.attempt === attempt;

function worldOf({ spec }: PodObject): number {
  const { containers } = spec as { containers?: { env?: { name: string; value?: string }[] }[] };
  return Number(containers?.[0]?.env?.find(({ name }) => name === 'WORLD_SIZE')?.value ?? 1);
}
