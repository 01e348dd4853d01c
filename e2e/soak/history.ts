/**
 * What must hold at every moment, checked afterwards on what etcd has stored: every change of every object, in the
 * order in which it was made. An API server that was killed has lost nothing of it. Who wrote is only in the audit log.
 */
import { readFile } from 'node:fs/promises';
import type { FaceTrainJobStatus } from '@facetrain/api';
import { isPodAlive } from '@facetrain/operator/controllers/observe';
import type { JobObject, PodObject } from '@facetrain/operator/controllers/resources';
import type { KubernetesObject } from '@facetrain/operator/runtime/resource';
import { CONTAINER, Label } from '@facetrain/planner/names';

/** A change of an object. */
export interface StoredChange {
  revision: number;
  kind: 'pods' | 'facetrainjobs' | 'quantizejobs';
  /** namespace/name */
  key: string;
  /** null: it was deleted. */
  object: KubernetesObject | null;
}

const PREFIXES = {
  pods: '/registry/pods/',
  facetrainjobs: '/registry/facetrain.dev/facetrainjobs/',
  quantizejobs: '/registry/facetrain.dev/quantizejobs/',
} as const;

interface EtcdEvent {
  type?: 'PUT' | 'DELETE';
  kv: { key: string; value?: string; mod_revision: string };
}

const base64 = (text: string): string => Buffer.from(text).toString('base64');
const decoded = (text: string): string => Buffer.from(text, 'base64').toString('utf8');

/**
 * Yields all changes up to now, oldest first. etcd must not be compacted, and must store JSON.
 *
 * @param etcd base URL
 */
export async function* storedChanges(etcd: string): AsyncGenerator<StoredChange> {
  const post = (path: string, body: object) => fetch(`${etcd}${path}`, { method: 'POST', body: JSON.stringify(body) });
  const range = { key: base64('/registry/'), range_end: base64('/registry0') };
  const { header } = (await (await post('/v3/kv/range', { ...range, keys_only: true, limit: 1 })).json()) as {
    header: { revision: string };
  };
  const last = Number(header.revision);
  const abort = new AbortController();
  const answer = await fetch(`${etcd}/v3/watch`, {
    method: 'POST',
    body: JSON.stringify({ create_request: { ...range, start_revision: 1, progress_notify: true } }),
    signal: abort.signal,
  });
  let rest = '';
  const decoder = new TextDecoder();
  try {
    for await (const chunk of answer.body!) {
      const lines = (rest + decoder.decode(chunk, { stream: true })).split('\n');
      rest = lines.pop()!;
      for (const line of lines) {
        if (line === '') continue;
        const { result } = JSON.parse(line) as {
          result: { header: { revision: string }; events?: EtcdEvent[]; canceled?: boolean; compact_revision?: string };
        };
        if (result.canceled) throw new Error(`etcd ended the watch; compacted at ${result.compact_revision}`);
        for (const { type = 'PUT', kv } of result.events ?? []) {
          const key = decoded(kv.key);
          const kind = (Object.keys(PREFIXES) as StoredChange['kind'][]).find((one) => key.startsWith(PREFIXES[one]));
          const revision = Number(kv.mod_revision);
          if (revision > last) return;
          if (kind !== undefined)
            yield {
              revision,
              kind,
              key: key.slice(PREFIXES[kind].length),
              object: type === 'DELETE' ? null : (JSON.parse(decoded(kv.value!)) as KubernetesObject),
            };
          if (revision === last) return;
        }
      }
    }
  } finally {
    abort.abort();
  }
}

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

/** The checks of pods and statuses. Give it the changes in their order. */
export class HistoryCheck {
  readonly violations: string[] = [];
  /** How many changes were checked, by kind. */
  readonly changes = { pods: 0, facetrainjobs: 0, quantizejobs: 0 };
  readonly #pods = new Map<string, PodState>();
  readonly #jobs = new Map<string, { uid: string; status: FaceTrainJobStatus }>();
  /** Attempts of which all ranks were ready, or had succeeded, at one moment. */
  readonly #whole = new Set<string>();
  /** Number of ranks of each attempt, as the first of its pods has it. */
  readonly #worlds = new Map<string, number>();
  /** Ranks that succeeded, of each attempt. */
  readonly #succeeded = new Map<string, Set<number>>();

  next({ revision, kind, key, object }: StoredChange): void {
    this.changes[kind]++;
    const where = `revision ${revision}: ${kind} ${key}`;
    if (kind === 'pods') this.#pod(where, key, object as PodObject | null);
    else this.#job(where, kind, key, object as JobObject | null);
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
    const isReady = status.conditions?.find(({ type }) => type === 'Ready')?.status === 'True';
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

const isOfGang = (one: PodState, { jobUid, attempt }: PodState): boolean =>
  one.jobUid === jobUid && one.attempt === attempt;

function worldOf({ spec }: PodObject): number {
  const { containers } = spec as { containers?: { env?: { name: string; value?: string }[] }[] };
  return Number(containers?.[0]?.env?.find(({ name }) => name === 'WORLD_SIZE')?.value ?? 1);
}

/** A line of the API server's audit log (audit.k8s.io/v1, stage ResponseComplete). */
export interface AuditEntry {
  verb: string;
  user: { username: string };
  objectRef?: { resource: string; subresource?: string; namespace?: string; name?: string };
  responseStatus?: { code?: number };
  requestReceivedTimestamp: string;
  stageTimestamp: string;
  requestObject?: { spec?: { holderIdentity?: string } };
}

export async function readAudit(file: string): Promise<AuditEntry[]> {
  const entries: AuditEntry[] = [];
  for (const line of (await readFile(file, 'utf8')).split('\n')) {
    // A server that was killed may have cut its last line.
    if (line.endsWith('}')) {
      try {
        entries.push(JSON.parse(line) as AuditEntry);
      } catch {}
    }
  }
  return entries;
}

const WRITES = new Set(['create', 'update', 'patch', 'delete']);

/**
 * Whether only the replica that holds the Lease has written.
 *
 * @param users those of the replicas
 * @param lease its namespace
 */
export function leaderViolations(entries: AuditEntry[], users: string[], lease: string): string[] {
  const violations: string[] = [];
  const isLease = ({ objectRef, user }: AuditEntry) =>
    objectRef?.resource === 'leases' && objectRef.namespace === lease && users.includes(user.username);
  const succeeded = ({ responseStatus }: AuditEntry) => (responseStatus?.code ?? 500) < 300;
  const ofReplicas = entries.filter(({ verb, user }) => WRITES.has(verb) && users.includes(user.username));
  /** When each replica got the Lease from another. */
  const takeovers: { user: string; at: string }[] = [];
  const leaseWrites = ofReplicas
    .filter((entry) => isLease(entry) && succeeded(entry) && (entry.requestObject?.spec?.holderIdentity ?? '') !== '')
    .sort((a, b) => (a.stageTimestamp < b.stageTimestamp ? -1 : 1));
  for (const { user, stageTimestamp } of leaseWrites)
    if (takeovers.at(-1)?.user !== user.username) takeovers.push({ user: user.username, at: stageTimestamp });
  for (const entry of ofReplicas) {
    if (isLease(entry) || !succeeded(entry)) continue;
    const holder = takeovers.findLast(({ at }) => at < entry.requestReceivedTimestamp);
    const { resource, subresource, name } = entry.objectRef ?? {};
    const what = [entry.verb, resource, subresource, name].filter((part) => part !== undefined).join(' ');
    const led = holder?.user ?? 'nobody';
    if (led !== entry.user.username)
      violations.push(`${entry.requestReceivedTimestamp}: ${entry.user.username} wrote (${what}), and ${led} led`);
  }
  return violations;
}

/** Successful writes of these users other than to Leases, after a time (RFC 3339). */
export const writesAfter = (entries: AuditEntry[], users: string[], time: string): AuditEntry[] =>
  entries.filter(
    ({ verb, user, objectRef, requestReceivedTimestamp }) =>
      WRITES.has(verb) &&
      users.includes(user.username) &&
      objectRef?.resource !== 'leases' &&
      requestReceivedTimestamp > time,
  );
