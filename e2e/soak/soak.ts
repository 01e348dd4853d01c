/**
 * A soak: jobs run on simulated nodes, with a real API server, etcd, scheduler, controllers and two replicas of the
 * operator, while random faults happen. Then it is quiet: every job has to come to its end, and what was stored
 * meanwhile is checked (history.ts). The seed repeats the choices, but not how long each process takes.
 */
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
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
  pods,
  quantizeJobs,
  services,
} from '@facetrain/operator/controllers/resources';
import type { KubernetesObject, Resource } from '@facetrain/operator/runtime/resource';
import { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { eventually } from '@facetrain/operator/testing/eventually';
import { Label, MANAGED_BY } from '@facetrain/planner/names';
import { doFault, MAX_TRAINERS, type Surroundings, setQuota } from './faults.ts';
import { HistoryCheck, leaderViolations, readAudit, storedChanges, writesAfter } from './history.ts';
import { OUTPUT_PATH, SimulatedNodes } from './nodes.ts';
import { OPERATOR_NAMESPACE, OperatorReplica, userOf } from './operators.ts';
import { Random } from './random.ts';
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
  faults: Record<string, number>;
  /** Jobs that were created, and what became of them. */
  jobs: { created: number; succeeded: number; deleted: number };
  /** Attempts of the jobs, beyond the first of each; and restarts of trainers in their pods. */
  restarts: { attempts: number; inPlace: number };
  changes: HistoryCheck['changes'];
  /** Seconds of the quiet time until all jobs had ended. */
  quietSeconds: number;
  violations: string[];
}

const NAMESPACE = 'soak';
const REPLICAS = ['operator-a', 'operator-b'];
/** After the last fault. A backoff may last 300 s, so the clocks of the operators are set forward. */
const QUIET_SECONDS = 600;
const LEAP_MILLISECONDS = 300_000;
/** Between two leaps: a leader that leaps loses its Lease, and the next one needs time to work. */
const LEAP_EVERY_SECONDS = 30;
const ELASTIC = { maxReplicas: MAX_TRAINERS, scaleDownSeconds: 3, scaleUpSeconds: 2 };
/** Without any write, at the end. */
const STILL_SECONDS = 12;
/** For what follows an end: a leader that was lost in between has to be replaced first. */
const SETTLE_SECONDS = 120;
const AUDIT_POLICY = {
  apiVersion: 'audit.k8s.io/v1',
  kind: 'Policy',
  omitStages: ['RequestReceived'],
  rules: [
    {
      level: 'Request',
      users: REPLICAS.map(userOf),
      verbs: ['create', 'update', 'patch', 'delete'],
      resources: [{ group: 'coordination.k8s.io', resources: ['leases'] }],
    },
    { level: 'Metadata', users: REPLICAS.map(userOf), verbs: ['create', 'update', 'patch', 'delete'] },
    { level: 'None' },
  ],
};

export async function runSoak(options: SoakOptions): Promise<SoakResult> {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-soak-'));
  const audit = join(folder, 'audit.log');
  await writeFile(join(folder, 'policy.yaml'), JSON.stringify(AUDIT_POLICY));
  const flags = [
    `--audit-policy-file=${join(folder, 'policy.yaml')}`,
    `--audit-log-path=${audit}`,
    // In megabytes: one file, however long the soak is. The default begins another one after 100.
    '--audit-log-maxsize=1000000',
    '--storage-media-type=application/json',
    '--etcd-compaction-interval=0',
  ];
  const plane = await ControlPlane.start(flags, true);
  const stops: (() => Promise<unknown>)[] = [() => plane.stop()];
  try {
    const store = await Store.start();
    stops.push(() => store.stop());
    const soak = new Soak(options, plane, store, audit);
    const replicas = await soak.start(folder, stops);
    const result = await soak.run(replicas);
    if (result.violations.length > 0) {
      await plane.copyLogs(folder);
      options.say(`logs, audit log and kubeconfigs are in ${folder}`);
    } else stops.unshift(() => rm(folder, { recursive: true, force: true }));
    return result;
  } finally {
    for (const stop of stops.reverse()) await stop();
  }
}

class Soak {
  readonly #options: SoakOptions;
  readonly #plane: ControlPlane;
  readonly #store: Store;
  readonly #audit: string;
  readonly #trainers: Trainers;
  readonly #random: Random;
  readonly #violations: string[] = [];
  readonly #faults: Record<string, number> = {};
  readonly #meanwhile = new Set<Promise<unknown>>();
  /** Names of jobs that were created and not deleted, with their uid. */
  readonly #created = new Map<string, string>();
  #count = 0;
  #deleted = 0;
  #nodes!: SimulatedNodes;

  constructor(options: SoakOptions, plane: ControlPlane, store: Store, audit: string) {
    this.#options = options;
    this.#plane = plane;
    this.#store = store;
    this.#audit = audit;
    this.#random = new Random(options.seed);
    // Of its own: how often trainers ask depends on the machine, and must not change which faults follow.
    this.#trainers = new Trainers(new Random(options.seed ^ 0x5eed), store);
  }

  async start(folder: string, stops: (() => Promise<unknown>)[]): Promise<OperatorReplica[]> {
    const plane = this.#plane;
    await plane.installCrds();
    for (const namespace of [NAMESPACE, OPERATOR_NAMESPACE]) await plane.createNamespace(namespace);
    const kubeconfig = await plane.kubeconfig();
    const common = ['--kubeconfig', kubeconfig, '--leader-elect=false', '--secure-port=0'];
    plane.run('kube-scheduler', common);
    plane.run('kube-controller-manager', [
      ...common,
      '--controllers=garbage-collector-controller,node-lifecycle-controller,taint-eviction-controller,' +
        'resourcequota-controller',
      // What a quota counts of deleted pods comes free with it.
      '--resource-quota-sync-period=2s',
      '--node-monitor-period=1s',
      '--node-monitor-grace-period=8s',
      // What the garbage collector looks at, and what it deletes.
      '-v=2',
    ]);
    this.#nodes = await SimulatedNodes.start(plane, this.#trainers, this.#options.nodes);
    stops.push(() => this.#nodes.stop());
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
    let faults = 0;
    await this.#refill(jobs);
    while (performance.now() - start < 1000 * seconds && faults < maxFaults) {
      await delay(2 * faultMilliseconds * this.#random.next());
      const fault = await doFault(around);
      await this.#refill(jobs);
      if (!fault) continue;
      faults++;
      this.#faults[fault.name] = (this.#faults[fault.name] ?? 0) + 1;
      say(`${elapsed()} s  ${fault.name}: ${fault.words}`);
    }
    say(`${elapsed()} s  quiet after ${faults} faults`);
    await Promise.all(this.#meanwhile);
    await this.#liftQuota();
    const quiet = performance.now();
    await this.#untilEnded(replicas);
    const quietSeconds = Math.round((performance.now() - quiet) / 1000);
    await this.#checkFolders();
    say(`${elapsed()} s  all jobs have ended; checking`);
    await this.#checkStillness();
    await this.#checkPlaceholders();
    const restarts = await this.#restarts();
    const succeeded = this.#created.size;
    await this.#checkRemains();
    const check = new HistoryCheck();
    for await (const change of storedChanges(this.#plane.etcd)) check.next(change);
    this.#violations.push(...check.violations);
    this.#violations.push(...leaderViolations(await readAudit(this.#audit), REPLICAS.map(userOf), OPERATOR_NAMESPACE));
    return {
      faults: this.#faults,
      jobs: { created: this.#count, succeeded, deleted: this.#deleted },
      restarts,
      changes: check.changes,
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
      namespace: NAMESPACE,
      away: new Set(),
      jobs: async () => (await this.#jobs().catch(() => [])).filter((job) => !hasEnded(job)),
      remove: async ({ metadata: { name, uid } }, again) => {
        // First: the API server may delete the job though its answer does not come.
        this.#created.delete(name);
        const gone = await this.#plane.client.delete(faceTrainJobs, NAMESPACE, name, uid).then(
          () => true,
          () => false,
        );
        if (!gone) return;
        this.#deleted++;
        if (again) await this.#create(name);
      },
      meanwhile: (work) => {
        const promise = work().finally(() => this.#meanwhile.delete(promise));
        this.#meanwhile.add(promise);
      },
    };
  }

  async #jobs(): Promise<JobObject[]> {
    return (await this.#plane.client.list<JobObject>(faceTrainJobs, NAMESPACE, {})).items ?? [];
  }

  /** Creates jobs until so many have not ended. */
  async #refill(wanted: number): Promise<void> {
    const jobs = await this.#jobs().catch(() => undefined);
    if (!jobs) return;
    for (let open = jobs.filter((job) => !hasEnded(job)).length; open < wanted; open++)
      await this.#create(`job-${this.#count}`);
  }

  async #create(name: string): Promise<void> {
    const random = this.#random;
    const replicas = random.between(1, MAX_TRAINERS);
    const job = {
      apiVersion: faceTrainJobs.apiVersion,
      kind: 'FaceTrainJob',
      metadata: { name },
      spec: {
        dataset: { uri: 'hostpath:///data/faces' },
        model: { backbone: 'mobilefacenet' },
        // No two jobs share a place, or one would wait for the other.
        output: {
          uri: random.chance(0.4) ? `s3://faces/${this.#count}` : `hostpath://${OUTPUT_PATH}/${this.#count}`,
        },
        globalBatchSize: 48,
        trainers: {
          replicas,
          progressPort: this.#nodes.progressPort,
          ...(random.chance(0.3) && { elastic: { ...ELASTIC, minReplicas: random.between(1, Math.min(2, replicas)) } }),
        },
        failurePolicy: { maxRestarts: 100, nodeLostSeconds: random.between(1, 20) },
        ...(random.chance(0.25) && {
          quantize: {
            calibration: { dataset: { uri: 'hostpath:///data/faces' } },
            output: { uri: `hostpath:///data/int7/${this.#count}` },
            failurePolicy: { maxRestarts: 100 },
          },
        }),
      },
    };
    this.#count++;
    const created = await this.#plane.client.create<JobObject>(faceTrainJobs, NAMESPACE, job).catch(() => undefined);
    if (created) this.#created.set(name, created.metadata.uid);
  }

  /** Waits until every job has ended; helps over long backoffs by setting the operators' clocks forward. */
  async #untilEnded(replicas: OperatorReplica[]): Promise<void> {
    const end = performance.now() + 1000 * QUIET_SECONDS;
    let leaps = 0;
    let nextLeap = performance.now() + 1000 * LEAP_EVERY_SECONDS;
    for (const replica of replicas) replica.shiftClock(0);
    for (;;) {
      const jobs = await this.#jobs().catch(() => undefined);
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
      // The API server may have been away when a fault resumed its job.
      for (const { spec, metadata } of open ?? [])
        if (spec.suspend === true)
          await this.#plane.client
            .patch(faceTrainJobs, NAMESPACE, metadata.name, { spec: { suspend: false } })
            .catch(() => {});
      if (performance.now() > nextLeap) {
        leaps++;
        for (const replica of replicas) replica.shiftClock(leaps * LEAP_MILLISECONDS);
        nextLeap = performance.now() + 1000 * LEAP_EVERY_SECONDS;
      }
      await delay(500);
    }
  }

  /** Every job that was created and not deleted is there. */
  #checkLost(jobs: JobObject[]): void {
    const there = new Set(jobs.map(({ metadata }) => metadata.uid));
    for (const [name, uid] of this.#created) if (!there.has(uid)) this.#violations.push(`${name}: the job is gone`);
  }

  async #checkFolders(): Promise<void> {
    const jobs = new Map((await this.#jobs()).map((job) => [job.metadata.uid, job]));
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
    const statuses = (await this.#jobs()).map(({ status }) => status);
    return {
      attempts: statuses.reduce((sum, status) => sum + (status?.attempt ?? 0), 0),
      inPlace: statuses.reduce((sum, status) => sum + (status?.restarts?.inPlace ?? 0), 0),
    };
  }

  /** The API server may have been away when a fault was to end. */
  #liftQuota(): Promise<void> {
    return eventually(() => setQuota(this.#plane.client, NAMESPACE, null), 120_000);
  }

  /** Nothing is left of deleted jobs. */
  async #checkRemains(): Promise<void> {
    const { client } = this.#plane;
    for (const { metadata } of await this.#jobs())
      await client.delete(faceTrainJobs, NAMESPACE, metadata.name, metadata.uid);
    const kinds: Resource[] = [faceTrainJobs, quantizeJobs, pods, configMaps, services, networkPolicies];
    try {
      await eventually(async () => {
        for (const kind of kinds) {
          const selector = kind === faceTrainJobs ? {} : { labelSelector: `${MANAGED_BY.label}=${MANAGED_BY.value}` };
          const { items } = await client.list<KubernetesObject>(kind, NAMESPACE, selector, true);
          assert.deepEqual(items?.map(({ metadata }) => metadata.name) ?? [], [], kind.plural);
        }
      }, 120_000);
    } catch (error) {
      this.#violations.push(`left behind by deleted jobs: ${(error as Error).message}`);
    }
  }
}

const hasEnded = ({ status }: JobObject): boolean =>
  ['Succeeded', 'Failed'].includes((status as FaceTrainJobStatus | undefined)?.phase ?? '');
