/**
 * A soak on real kubelets: the example is trained by the trainers' image on the nodes of a cluster (../../cluster)
 * while random faults happen to processes, pods, nodes, container runtimes and the control plane. Then it is quiet:
 * every job has to train on, and what was stored and written is checked. With micro-batches the number of ranks changes
 * nothing, so all jobs have the weights of one that nothing has disturbed, bit for bit.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { checkpointFolder } from '@facetrain/api';
import type { JobObject } from '@facetrain/operator/controllers/resources';
import { eventually } from '@facetrain/operator/testing/eventually';
import { compareCheckpoints, openAt } from '@facetrain/trainer/checkpoint/compare';
import { Cluster } from '../../cluster/cluster.ts';
import { buildImages, TRAINER_IMAGE } from '../../cluster/images.ts';
import { createNamespace, installAll } from '../../cluster/install-facetrain.ts';
import {
  applyExample,
  CHECKPOINT_STEPS,
  ON_WORKERS,
  reachesStep,
  stepOf,
  trainLongWithoutEvaluation,
  withoutVolume,
} from '../../testing/example-job.ts';
import { condition, type Job, MINUTE, Namespace } from '../../testing/namespace.ts';
import { FaultDraw } from '../fault-draw.ts';
import { HistoryCheck, StoredHistory } from '../history.ts';
import { Random } from '../random.ts';
import { type FaultSummary, Recovery } from '../recovery.ts';
import { FAULTS, type Surroundings, suspend } from './faults.ts';
import { Watched } from './written.ts';

export interface KubeletSoakOptions {
  seed: number;
  /** Of the time with faults. */
  seconds: number;
  /** Ends the time with faults earlier. */
  maxFaults?: number;
  /** Mean time between two faults. */
  faultMilliseconds: number;
  /** Called with each fault, and with what comes before and after. */
  say: (line: string) => void;
}

export interface KubeletSoakResult {
  faults: FaultSummary[];
  /** Checkpoints that were seen while they were written. */
  checkpoints: number;
  /** Of the jobs together: further attempts, and restarts of trainers in their pods. */
  restarts: { attempts: number; inPlace: number };
  changes: HistoryCheck['changes'];
  violations: string[];
}

const WORKERS = 2;
/** Nothing disturbs it: its one trainer is on the node of the control plane, whose kubelet goes on. */
const STEADY = 'steady';
/** What may be disturbed, by name. All train the same. */
const JOBS: Record<string, (spec: Job['spec']) => void> = {
  volume: () => {},
  memory: (spec) => Object.assign(spec.checkpoint, { inMemory: true }),
  store: withoutVolume,
  elastic: (spec) => {
    withoutVolume(spec);
    spec.trainers.replicas = 3;
    spec.trainers.elastic = { minReplicas: 1, maxReplicas: 3, scaleDownSeconds: 15, scaleUpSeconds: 5 };
  },
};
const isOnVolume = (name: string): boolean => name === 'volume' || name === 'memory';

export async function runKubeletSoak(options: KubeletSoakOptions): Promise<KubeletSoakResult> {
  const { say } = options;
  await buildImages(say);
  say('starting the cluster');
  const cluster = await Cluster.start({ readableEtcd: true });
  try {
    return await new KubeletSoak(options, cluster).run();
  } catch (error) {
    say(await cluster.logs().catch(String));
    throw error;
  } finally {
    await cluster.stop();
  }
}

class KubeletSoak {
  readonly #options: KubeletSoakOptions;
  readonly #cluster: Cluster;
  readonly #recovery = new Recovery();
  readonly #check = new HistoryCheck();
  readonly #violations: string[] = [];
  readonly #meanwhile = new Set<Promise<unknown>>();
  readonly #uids = new Map<string, string>();
  #adding: Promise<unknown> = Promise.resolve();

  constructor(options: KubeletSoakOptions, cluster: Cluster) {
    this.#options = options;
    this.#cluster = cluster;
  }

  async run(): Promise<KubeletSoakResult> {
    const { say } = this.#options;
    const names = Object.keys(JOBS);
    const ns = new Namespace(this.#cluster, 'soak');
    const history = this.#followHistory();
    const written = new Watched(names.map((job) => ({ job, ...placeOf(ns, job) })));
    try {
      await installAll(this.#cluster, say);
      for (let i = 0; i < WORKERS; i++) await this.#addWorker();
      await createNamespace(this.#cluster, ns.name);
      await this.#applyJobs(ns);
      say('the jobs begin');
      for (const name of names) {
        await reachesStep(ns, name, { attempt: 0, step: 1 });
        this.#uids.set(name, (await ns.get('facetrainjob', name)).metadata.uid!);
      }
      await this.#disturb(ns);
      await this.#checkTheyTrainOn(ns);
      const restarts = await this.#stopAll(ns);
      await this.#checkWeights(ns);
      await written.stop();
      await this.#checkRemains(ns);
      await history.catchUp();
      this.#violations.push(...written.check.violations, ...this.#check.violations);
      return {
        faults: this.#recovery.summary(),
        checkpoints: written.check.seen,
        restarts,
        changes: this.#check.changes,
        violations: this.#violations,
      };
    } finally {
      await written.stop();
      await history.stop();
    }
  }

  #followHistory(): StoredHistory {
    return new StoredHistory(this.#cluster.etcd, (change) => {
      this.#check.next(change);
      if (change.kind !== 'facetrainjobs') return;
      const job = change.object as JobObject | null;
      if (job) this.#recovery.status(change.key, job.metadata.uid, job.status ?? {}, performance.now());
      else this.#recovery.deleted(change.key);
    });
  }

  /** One after the other: a cluster gives each a name that is free. */
  #addWorker(): Promise<unknown> {
    this.#adding = this.#adding.then(async () => {
      const node = await this.#cluster.addNode();
      // A fault may happen to it already.
      await eventually(async () => {
        if (this.#cluster.nodeNames.includes(node)) await this.#cluster.load([TRAINER_IMAGE], [node]);
      }, 5 * MINUTE);
    });
    return this.#adding;
  }

  async #applyJobs(ns: Namespace): Promise<void> {
    for (const [name, change] of Object.entries({ [STEADY]: withoutVolume, ...JOBS }))
      await applyExample(ns, name, (spec) => {
        spec.trainers.replicas = name === STEADY ? 1 : 2;
        // Needs `quantize`, which the next line deletes.
        if (!isOnVolume(name)) change(spec);
        trainLongWithoutEvaluation(spec);
        spec.schedule = { type: 'Constant' };
        spec.loss.sampleRate = 0.5;
        // Five micro-batches.
        spec.globalBatchSize = 10;
        spec.trainers.microBatchSize = 2;
        spec.checkpoint = { everySteps: CHECKPOINT_STEPS, keep: 1000 };
        if (isOnVolume(name)) change(spec);
        if (name === STEADY) return;
        spec.trainers.podTemplate = { spec: ON_WORKERS };
        spec.trainers.resources = { limits: { 'ephemeral-storage': '300Mi' } };
        spec.failurePolicy = { maxRestarts: 100, windowSeconds: 60, nodeLostSeconds: 5 };
      });
  }

  async #disturb(ns: Namespace): Promise<void> {
    const { seed, seconds, maxFaults = Infinity, faultMilliseconds, say } = this.#options;
    const random = new Random(seed);
    const around: Surroundings = {
      cluster: this.#cluster,
      ns,
      random,
      jobs: Object.keys(JOBS),
      away: new Set(),
      meanwhile: (work) => {
        const promise = work()
          .catch((error) => this.#violations.push(`a fault could not end: ${error}`))
          .finally(() => this.#meanwhile.delete(promise));
        this.#meanwhile.add(promise);
      },
      addWorker: () => this.#addWorker(),
    };
    const start = performance.now();
    const elapsed = () => ((performance.now() - start) / 1000).toFixed(1).padStart(6);
    const draw = new FaultDraw(FAULTS);
    let faults = 0;
    while (performance.now() - start < 1000 * seconds && faults < maxFaults) {
      await delay(2 * faultMilliseconds * random.next());
      const at = performance.now();
      const fault = await draw.next(around);
      if (!fault) continue;
      faults++;
      this.#recovery.fault(
        fault.name,
        (fault.jobs ?? []).map((job) => this.#uids.get(job) ?? ''),
        at,
      );
      say(`${elapsed()} s  ${fault.name}: ${fault.words}`);
    }
    say(`${elapsed()} s  quiet after ${faults} faults of ${draw.kinds}`);
    while (this.#meanwhile.size > 0) await Promise.all(this.#meanwhile);
    for (const node of this.#cluster.nodeNames) await this.#cluster.waitUntilReady(node);
  }

  /** A backoff may last 300 s. */
  async #checkTheyTrainOn(ns: Namespace): Promise<void> {
    for (const name of [STEADY, ...Object.keys(JOBS)]) {
      await eventually(() => ns.patch('facetrainjob', name, { spec: { suspend: false } }), 2 * MINUTE);
      let goal: number | undefined;
      const trainsOn = ({ status }: Job): void => {
        if (status?.phase === 'Failed') return; // for good
        assert.equal(status?.phase, 'Running');
        goal ??= status.progress.step + CHECKPOINT_STEPS;
        assert(status.progress.step >= goal!, `step ${status.progress.step}`);
      };
      try {
        const job = await ns.waitFor(name, trainsOn, { milliseconds: 10 * MINUTE });
        if (job.status!.phase === 'Failed')
          this.#violations.push(`${name} has failed: ${condition(job, 'Ready')?.message}`);
      } catch (error) {
        this.#violations.push(`does not train on: ${(error as Error).message}`);
      }
    }
  }

  /** Suspends all but the steady job. */
  async #stopAll(ns: Namespace): Promise<KubeletSoakResult['restarts']> {
    const restarts = { attempts: 0, inPlace: 0 };
    for (const name of Object.keys(JOBS)) {
      await suspend(ns, name, true);
      const { status } = await ns.waitFor(name, ({ status }) => assert.equal(status?.phase, 'Suspended'));
      restarts.attempts += status!.attempt;
      restarts.inPlace += status!.restarts?.inPlace ?? 0;
    }
    return restarts;
  }

  /** Checkpoints are read as a whole, and their digests are compared. */
  async #checkWeights(ns: Namespace): Promise<void> {
    const steps = new Map<string, number>();
    for (const name of Object.keys(JOBS)) {
      const { step } = (await ns.get('facetrainjob', name)).status!.checkpoint as { step: number };
      steps.set(name, step - (step % CHECKPOINT_STEPS));
    }
    const last = Math.max(...steps.values());
    this.#options.say(`checking; ${STEADY} trains up to step ${last}`);
    await ns.waitFor(STEADY, (job) => assert(job.status!.checkpoint.step >= last, `step ${stepOf(job)}`), {
      milliseconds: 30 * MINUTE,
    });
    for (const [name, step] of steps) {
      const [one, steady] = [
        await openAt(await this.#pathOf(ns, name, step)),
        await openAt(await this.#pathOf(ns, STEADY, step)),
      ];
      const { backbone, centres } = await compareCheckpoints(one, steady);
      if (backbone.distance !== 0 || centres!.compared !== centres!.unchanged)
        this.#violations.push(`${name}: at step ${step} its weights are not those of ${STEADY}`);
    }
  }

  #pathOf(ns: Namespace, name: string, step: number): Promise<string> | string {
    const { folder } = placeOf(ns, name);
    return folder ? join(folder, checkpointFolder(step)) : ns.fetch(name, 'checkpoint', '--step', String(step));
  }

  /** Nothing is left of deleted jobs, and no process on any node. */
  async #checkRemains(ns: Namespace): Promise<void> {
    await ns.kubectl('delete', 'facetrainjobs', '--all');
    try {
      await eventually(async () => {
        const kinds = 'pods,services,configmaps,networkpolicies,podgroups';
        const names = await ns.kubectl('get', kinds, '-l', 'app.kubernetes.io/managed-by=facetrain', '-o', 'name');
        assert.equal(names.trim(), '');
        for (const node of this.#cluster.nodeNames) {
          const trainers = ['sh', '-c', 'grep -lz ^FACETRAIN_CONFIG= /proc/[0-9]*/environ 2>/dev/null || true'];
          assert.equal(await this.#cluster.execute(node, trainers), '', `processes on ${node}`);
        }
      }, 3 * MINUTE);
    } catch (error) {
      this.#violations.push(`left behind by deleted jobs: ${(error as Error).message}`);
    }
  }
}

/** Where a job's checkpoints are on this machine: its folder, or its head in the object store. */
function placeOf(ns: Namespace, name: string): { folder?: string; head?: string } {
  return isOnVolume(name)
    ? { folder: join(ns.folder, name, 'checkpoints') }
    : { head: join(ns.cluster.shared, 'buckets', 'models', name, 'checkpoints', 'fences', 'head.json') };
}
