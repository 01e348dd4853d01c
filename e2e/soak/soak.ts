/**
 * A soak: jobs run on simulated nodes, with a real API server, etcd, scheduler, controllers, Kueue and two replicas of
 * the operator, while random faults happen. Then it is quiet: every job has to come to its end, and what was stored is
 * checked (history.ts). The seed repeats the choices, but not how long each process takes.
 */
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { FaceTrainJobStatus } from '@facetrain/api';
import { isPodAlive } from '@facetrain/operator/controllers/observe';
import {
  configMaps,
  faceTrainJobs,
  type JobObject,
  networkPolicies,
  type PodObject,
  podGroups,
  pods,
  quantizeJobs,
  services,
  workloads,
} from '@facetrain/operator/controllers/resources';
import { controllerOf, type KubernetesObject, type Resource } from '@facetrain/operator/runtime/resource';
import type { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { eventually } from '@facetrain/operator/testing/eventually';
import { Label, MANAGED_BY } from '@facetrain/planner/names';
import { forbiddenViolations, leaderViolations, readAudit, writesAfter } from './audit.ts';
import {
  KeptKueue,
  NAMESPACE,
  POD_GROUP_API,
  QUEUE_PODS,
  setQuota,
  startCluster,
  stopQueue,
  type Variant,
  variantOf,
} from './cluster.ts';
import { FaultDraw } from './fault-draw.ts';
import { FAULTS, type Surroundings } from './faults.ts';
import { HistoryCheck, StoredHistory } from './history.ts';
import { hasEnded, Jobs, kindOf, phaseOf } from './jobs.ts';
import { SimulatedNodes } from './nodes.ts';
import { installRights, OPERATOR_NAMESPACE, OperatorReplica, userOf } from './operators.ts';
import { Random } from './random.ts';
import { type FaultSummary, Recovery } from './recovery.ts';
import { Store, StoredCheckpoints } from './stored-checkpoints.ts';
import { Trainers } from './trainers.ts';

export interface SoakOptions {
  seed: number;
  /** Of the time with faults. */
  seconds: number;
  /** Ends the time with faults earlier. */
  maxFaults?: number;
  /** That run at the same time. */
  jobs: number;
  nodes: number;
  /** Mean time between two faults. */
  faultMilliseconds: number;
  /** Called with each fault, and with what comes after. */
  say: (line: string) => void;
}

export interface SoakResult {
  faults: FaultSummary[];
  /** Jobs that were created, and what became of them. */
  jobs: { created: number; succeeded: number; deleted: number };
  /** Attempts of the jobs, beyond the first of each; and restarts of trainers in their pods. */
  restarts: { attempts: number; inPlace: number };
  changes: HistoryCheck['changes'];
  /** Watches of the operator that the API server no longer had the changes for (410). */
  expiredWatches: number;
  /** How often Kueue lent more quota than it has. */
  overlent: number;
  /** Seconds of the quiet time until all jobs had ended. */
  quietSeconds: number;
  violations: string[];
}

const REPLICAS = ['operator-a', 'operator-b'];
/** After the last fault. A backoff may last 300 s, so the clocks of the operators are set forward. */
const QUIET_SECONDS = 600;
const LEAP_MILLISECONDS = 300_000;
/** Between two leaps: a leader that leaps loses its Lease, and the next one needs time to work. */
const LEAP_EVERY_SECONDS = 30;
/** Without any write, at the end. */
const STILL_SECONDS = 12;
/** For what follows an end: a leader that was lost in between has to be replaced first. */
const SETTLE_SECONDS = 120;
/** In which the operator acts on an edit, whatever happens. */
const PROBE_SECONDS = 120;
/** What a replica logs when a watch has expired (operator/src/runtime/cache.ts). */
const EXPIRED = /watch is too far behind/g;

export async function runSoak(options: SoakOptions): Promise<SoakResult> {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-soak-'));
  const variant = variantOf(options.seed);
  options.say(
    `${variant.nativeGangs ? 'gangs by PodGroups' : 'gangs of plain pods'}, ` +
      `API server ${variant.watchCache ? 'with' : 'without'} watch cache`,
  );
  const { plane, audit, probes } = await startCluster(variant, REPLICAS.map(userOf), folder);
  const stops: (() => unknown)[] = [() => plane.stop()];
  let isClean = false;
  try {
    const store = await Store.start();
    stops.push(() => store.stop());
    const soak = new Soak(options, variant, plane, store, audit, new KeptKueue(plane, probes));
    const replicas = await soak.start(folder, stops);
    const result = await soak.run(replicas);
    isClean = result.violations.length === 0;
    return result;
  } finally {
    if (!isClean) {
      await plane.copyLogs(folder);
      options.say(`logs, audit log and kubeconfigs are in ${folder}`);
    }
    for (const stop of stops.reverse()) await stop();
    if (isClean) await rm(folder, { recursive: true, force: true });
  }
}

class Soak {
  readonly #options: SoakOptions;
  readonly #variant: Variant;
  readonly #plane: ControlPlane;
  readonly #store: Store;
  readonly #audit: string;
  readonly #kueue: KeptKueue;
  readonly #trainers: Trainers;
  readonly #random: Random;
  readonly #recovery = new Recovery();
  readonly #check = new HistoryCheck(QUEUE_PODS);
  readonly #violations: string[] = [];
  readonly #meanwhile = new Set<Promise<unknown>>();
  #nodes!: SimulatedNodes;
  #jobs!: Jobs;
  #history!: StoredHistory;

  constructor(
    options: SoakOptions,
    variant: Variant,
    plane: ControlPlane,
    store: Store,
    audit: string,
    kueue: KeptKueue,
  ) {
    this.#options = options;
    this.#variant = variant;
    this.#plane = plane;
    this.#store = store;
    this.#audit = audit;
    this.#kueue = kueue;
    this.#random = new Random(options.seed);
    // Of its own: how often trainers ask depends on the machine, and must not change which faults follow.
    this.#trainers = new Trainers(new Random(options.seed ^ 0x5eed), store);
  }

  async start(folder: string, stops: (() => unknown)[]): Promise<OperatorReplica[]> {
    const plane = this.#plane;
    await installRights(plane.client, REPLICAS);
    stops.push(() => this.#kueue.stop());
    this.#history = new StoredHistory(plane.etcd, (change) => {
      this.#check.next(change);
      if (change.kind !== 'facetrainjobs' && change.kind !== 'quantizejobs') return;
      const key = `${change.kind}/${change.key}`;
      const job = change.object as JobObject | null;
      if (job) this.#recovery.status(key, job.metadata.uid, job.status ?? {}, performance.now());
      else this.#recovery.deleted(key);
    });
    stops.push(() => this.#history.stop());
    this.#nodes = await SimulatedNodes.start(plane, this.#trainers, this.#options.nodes);
    stops.push(() => this.#nodes.stop());
    this.#jobs = new Jobs(plane.client, this.#random, this.#nodes.progressPort);
    await this.#jobs.createProbe();
    const replicas: OperatorReplica[] = [];
    for (const name of REPLICAS) {
      const replica = await OperatorReplica.start(plane, name, folder, (words) => this.#violations.push(words));
      replicas.push(replica);
      stops.push(() => replica.stop());
    }
    return replicas;
  }

  async run(replicas: OperatorReplica[]): Promise<SoakResult> {
    const { seconds, maxFaults = Infinity, faultMilliseconds, say, jobs } = this.#options;
    const around = this.#surroundings(replicas);
    const start = performance.now();
    const elapsed = () => ((performance.now() - start) / 1000).toFixed(1).padStart(6);
    const draw = new FaultDraw(FAULTS);
    let faults = 0;
    await this.#jobs.refill(jobs);
    while (performance.now() - start < 1000 * seconds && faults < maxFaults) {
      await delay(2 * faultMilliseconds * this.#random.next());
      const at = performance.now();
      const fault = await draw.next(around);
      await this.#jobs.refill(jobs);
      if (!fault) continue;
      faults++;
      const { name, words, jobs: hit = [], isOfOperator } = fault;
      this.#recovery.fault(name, hit, at);
      if (isOfOperator) around.meanwhile(() => this.#probe(name, at));
      say(`${elapsed()} s  ${name}: ${words}`);
    }
    say(`${elapsed()} s  quiet after ${faults} faults of ${draw.kinds}`);
    await Promise.all(this.#meanwhile);
    await this.#undo();
    const quiet = performance.now();
    await this.#untilEnded(replicas);
    const quietSeconds = Math.round((performance.now() - quiet) / 1000);
    await this.#checkFolders();
    say(`${elapsed()} s  all jobs have ended; checking`);
    await this.#checkStillness();
    await this.#checkPlaceholders();
    const restarts = await this.#restarts();
    const { created, count, deleted } = this.#jobs;
    const succeeded = created.size;
    await this.#checkRemains();
    await this.#history.catchUp();
    this.#violations.push(...this.#check.violations);
    const [entries, users] = [await readAudit(this.#audit), REPLICAS.map(userOf)];
    this.#violations.push(...leaderViolations(entries, users, OPERATOR_NAMESPACE));
    this.#violations.push(...(await forbiddenViolations(this.#plane.client, entries, users)));
    const logs = await Promise.all(replicas.map(({ log }) => readFile(log, 'utf8')));
    return {
      faults: this.#recovery.summary(),
      jobs: { created: count, succeeded, deleted },
      restarts,
      changes: this.#check.changes,
      expiredWatches: logs.reduce((sum, text) => sum + (text.match(EXPIRED)?.length ?? 0), 0),
      overlent: this.#check.overlent,
      quietSeconds,
      violations: this.#violations,
    };
  }

  #surroundings(replicas: OperatorReplica[]): Surroundings {
    return {
      random: this.#random,
      plane: this.#plane,
      client: this.#plane.client,
      nodes: this.#nodes,
      trainers: this.#trainers,
      store: this.#store,
      replicas,
      kueue: this.#kueue,
      history: this.#history,
      variant: this.#variant,
      jobs: this.#jobs,
      away: new Set(),
      meanwhile: (work) => {
        const promise = work().finally(() => this.#meanwhile.delete(promise));
        this.#meanwhile.add(promise);
      },
    };
  }

  /** Measures how long after a fault the operator acts on an edit that is made at once. */
  async #probe(fault: string, at: number): Promise<void> {
    try {
      const hasSeen = await eventually(() => this.#jobs.editProbe(), 1000 * PROBE_SECONDS);
      await eventually(async () => assert(await hasSeen()), 1000 * PROBE_SECONDS);
      this.#recovery.acted(fault, performance.now() - at);
    } catch (error) {
      this.#violations.push(`no edit was seen within ${PROBE_SECONDS} s after "${fault}": ${error}`);
    }
  }

  /** Waits until every job has ended; helps over long backoffs by setting the operators' clocks forward. */
  async #untilEnded(replicas: OperatorReplica[]): Promise<void> {
    const end = performance.now() + 1000 * QUIET_SECONDS;
    let leaps = 0;
    let nextLeap = performance.now() + 1000 * LEAP_EVERY_SECONDS;
    for (const replica of replicas) replica.shiftClock(0);
    for (;;) {
      const jobs = await this.#jobs.list().catch(() => undefined);
      const open = jobs?.filter((job) => !hasEnded(job));
      if (open?.length === 0) {
        for (const job of jobs!) {
          const { phase, conditions } = job.status as FaceTrainJobStatus;
          if (phase === 'Succeeded') continue;
          const failed = conditions?.find(({ type }) => type === 'Failed');
          this.#violations.push(`${job.metadata.name}: ${phase}: ${failed?.reason}: ${failed?.message}`);
        }
        return this.#checkLost(jobs!);
      }
      if (performance.now() > end) {
        for (const { metadata, status } of open ?? []) {
          const { phase, conditions } = (status ?? {}) as FaceTrainJobStatus;
          const ready = conditions?.find(({ type }) => type === 'Ready');
          const state = `${phase}: ${ready?.reason}: ${ready?.message}`;
          this.#violations.push(`${metadata.name} has not ended ${QUIET_SECONDS} s after the last fault: ${state}`);
        }
        if (!open) this.#violations.push('the API server has not come back');
        return;
      }
      await this.#resume(open ?? []).catch(() => {});
      if (performance.now() > nextLeap) {
        leaps++;
        for (const replica of replicas) replica.shiftClock(leaps * LEAP_MILLISECONDS);
        nextLeap = performance.now() + 1000 * LEAP_EVERY_SECONDS;
      }
      await delay(500);
    }
  }

  /** The API server may have been away when a fault was to resume a job, or to activate its Workload. */
  async #resume(jobs: JobObject[]): Promise<void> {
    const { client } = this.#plane;
    for (const job of jobs)
      if (job.spec.suspend === true)
        await client.patch(kindOf(job), NAMESPACE, job.metadata.name, { spec: { suspend: false } });
    for (const { spec, metadata } of (await client.list(workloads, NAMESPACE, {})).items ?? [])
      if (spec.active === false) await client.patch(workloads, NAMESPACE, metadata.name, { spec: { active: true } });
  }

  /** Every job that was created and not deleted is there. */
  #checkLost(jobs: JobObject[]): void {
    const there = new Set(jobs.map(({ metadata }) => metadata.uid));
    for (const [name, uid] of this.#jobs.created)
      if (!there.has(uid)) this.#violations.push(`${name}: the job is gone`);
  }

  async #checkFolders(): Promise<void> {
    const jobs = new Map((await this.#jobs.all()).map((job) => [job.metadata.uid, job]));
    for (const { kind, status, metadata } of jobs.values())
      if (kind === 'QuantizeJob' && phaseOf(status) === 'Succeeded' && !this.#trainers.published.has(metadata.uid))
        this.#violations.push(`${metadata.name}: Succeeded, and nothing was published`);
    for (const [uid, folder] of this.#trainers.folders) {
      const job = jobs.get(uid);
      const name = job?.metadata.name ?? `a deleted job (${uid})`;
      if (job && folder instanceof StoredCheckpoints) await folder.checkEnd();
      for (const violation of folder.violations) this.#violations.push(`${name}: ${violation}`);
      if (!job) continue;
      const status = job.status as FaceTrainJobStatus;
      if (folder.modelWriter === null) this.#violations.push(`${name}: ${status.phase} without a model`);
      const saved = this.#trainers.saved.get(uid) ?? 0;
      if ((status.checkpoint?.step ?? 0) > saved)
        this.#violations.push(`${name}: the status has a checkpoint of step ${status.checkpoint?.step}, not ${saved}`);
    }
  }

  /** Nothing is written but Leases once all jobs have ended, and what follows an end (deletions, events) is done. */
  async #checkStillness(): Promise<void> {
    const users = REPLICAS.map(userOf);
    const end = performance.now() + 1000 * SETTLE_SECONDS;
    for (;;) {
      const from = new Date().toISOString();
      await delay(1000 * STILL_SECONDS);
      const writes = writesAfter(await readAudit(this.#audit), users, from);
      if (writes.length === 0) return;
      if (performance.now() < end) continue;
      for (const { verb, objectRef } of writes)
        this.#violations.push(`written though nothing happens: ${verb} ${objectRef?.resource} ${objectRef?.name}`);
      return;
    }
  }

  /** No pod holds a place for a job that has ended. */
  async #checkPlaceholders(): Promise<void> {
    const { items } = await this.#plane.client.list<PodObject>(pods, NAMESPACE, {
      labelSelector: `${Label.placeholder}=true`,
    });
    for (const pod of items ?? [])
      if (isPodAlive(pod)) this.#violations.push(`${pod.metadata.name}: a placeholder of a job that has ended`);
  }

  async #restarts(): Promise<SoakResult['restarts']> {
    const statuses = (await this.#jobs.list()).map(({ status }) => status);
    return {
      attempts: statuses.reduce((sum, status) => sum + (status?.attempt ?? 0), 0),
      inPlace: statuses.reduce((sum, status) => sum + (status?.restarts?.inPlace ?? 0), 0),
    };
  }

  /** The API server may have been away when a fault was to end. */
  async #undo(): Promise<void> {
    await eventually(() => setQuota(this.#plane.client, null), 120_000);
    await eventually(() => stopQueue(this.#plane.client, false), 120_000);
  }

  /** Nothing is left of deleted jobs. */
  async #checkRemains(): Promise<void> {
    const { client } = this.#plane;
    for (const job of (await this.#jobs.all()).filter((each) => controllerOf(each) === undefined))
      await client.delete(kindOf(job), NAMESPACE, job.metadata.name, job.metadata.uid);
    const all: Resource[] = [faceTrainJobs, quantizeJobs, workloads];
    const made: Resource[] = [pods, configMaps, services, networkPolicies];
    if (this.#variant.nativeGangs) made.push(podGroups(POD_GROUP_API));
    try {
      await eventually(async () => {
        for (const kind of [...all, ...made]) {
          const selector = all.includes(kind) ? {} : { labelSelector: `${MANAGED_BY.label}=${MANAGED_BY.value}` };
          const { items } = await client.list<KubernetesObject>(kind, NAMESPACE, selector, true);
          assert.deepEqual(items?.map(({ metadata }) => metadata.name) ?? [], [], kind.plural);
        }
      }, 120_000);
    } catch (error) {
      this.#violations.push(`left behind by deleted jobs: ${(error as Error).message}`);
    }
  }
}
