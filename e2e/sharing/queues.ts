/** Gangs in a queue of Kueue, whose webhooks check what the operator writes. */
import assert from 'node:assert/strict';
import { isPodAlive } from '@facetrain/operator/controllers/observe';
import { type PodObject, pods } from '@facetrain/operator/controllers/resources';
import { Cache } from '@facetrain/operator/runtime/cache';
import { eventually } from '@facetrain/operator/testing/eventually';
import { silentLog } from '@facetrain/operator/testing/silent-log';
import { kueueIsReady } from '../cluster/install-kueue.ts';
import { applyExample, reachesStep, stepResumedFrom, trainLongWithoutEvaluation } from '../testing/example-job.ts';
import { condition, MINUTE, type Namespace, restartsOf } from '../testing/namespace.ts';
import { AT_THE_GATE, gated, openGate, trainJob, yaml } from '../testing/small-jobs.ts';
import { trainsWith } from './elastic-gangs.ts';

/** Makes a queue `team`, with quota for so many pods. */
async function applyQueue(ns: Namespace, pods: number): Promise<void> {
  await kueueIsReady(ns.cluster);
  const name = ns.name;
  const objects = [
    yaml(`{apiVersion: kueue.x-k8s.io/v1beta2, kind: ResourceFlavor, metadata: {name: ${name}}}`),
    yaml(`
      apiVersion: kueue.x-k8s.io/v1beta2
      kind: ClusterQueue
      metadata: {name: ${name}}
      spec:
        namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ${name}}}
        preemption: {withinClusterQueue: LowerPriority}
        resourceGroups:
          - coveredResources: [pods]
            flavors: [{name: ${name}, resources: [{name: pods, nominalQuota: ${pods}}]}]`),
    yaml(`
      apiVersion: kueue.x-k8s.io/v1beta2
      kind: LocalQueue
      metadata: {name: team}
      spec: {clusterQueue: ${name}}`),
    ...Object.entries({ lowest: 1, low: 2, high: 10 }).map(([priority, value]) => ({
      apiVersion: 'kueue.x-k8s.io/v1beta2',
      kind: 'WorkloadPriorityClass',
      metadata: { name: `${name}-${priority}` },
      value,
    })),
  ];
  await eventually(() => ns.apply(...objects), 10 * MINUTE, 1000);
}

const queueOf = (ns: Namespace, priority: string) => ({ name: 'team', priorityClassName: `${ns.name}-${priority}` });

const waitsFor = (ns: Namespace, name: string, why: RegExp) =>
  ns.waitFor(name, (job) => {
    const { reason, message } = condition(job, 'Ready')!;
    assert.equal(reason, 'Queued');
    assert.match(message, why);
  });

/** The pods of a namespace that have not ended, at every moment that a watch shows. */
class LivePods {
  /** Names of the most that there were at the same time. */
  most: string[] = [];
  readonly #cache: Cache<PodObject>;
  readonly #end = new AbortController();

  private constructor({ cluster: { client }, name: namespace }: Namespace) {
    this.#cache = new Cache({ client, resource: pods, namespace, log: silentLog });
    this.#cache.onChange(() => {
      const names = this.names();
      if (names.length > this.most.length) this.most = names;
    });
  }

  static async watch(ns: Namespace): Promise<LivePods> {
    const watched = new LivePods(ns);
    void watched.#cache.run(watched.#end.signal);
    await watched.#cache.synced;
    return watched;
  }

  [Symbol.dispose](): void {
    this.#end.abort();
  }

  names(): string[] {
    const alive = [...this.#cache.values()].filter(isPodAlive);
    return alive.map(({ metadata: { name } }) => name).sort();
  }
}

export const queues: Record<string, (ns: Namespace) => Promise<void>> = {
  'quota for 4, gangs of 3: one waits, a higher priority takes the place of a training, and all finish': async (ns) => {
    await applyQueue(ns, 4);
    using live = await LivePods.watch(ns);
    const small = (name: string, priority: string) =>
      trainJob(name, { replicas: 3, shell: 'sleep 3', spec: { queue: queueOf(ns, priority), globalBatchSize: 66 } });
    await applyExample(ns, 'first', (spec) => {
      trainLongWithoutEvaluation(spec);
      spec.globalBatchSize = 9;
      spec.epochs = 3;
      spec.trainers.replicas = 3;
      spec.queue = queueOf(ns, 'low');
    });
    await reachesStep(ns, 'first', { attempt: 0, step: 1 });
    await ns.apply(small('second', 'lowest'));
    await waitsFor(ns, 'second', /insufficient unused quota for pods/);
    await ns.apply(small('urgent', 'high'));

    // The trainers write a checkpoint, and the quota stays theirs until they have ended.
    const { status } = await ns.waitFor('first', ({ status }) => {
      assert.equal(status!.attempt, 1);
      assert(live.names().every((name) => !name.startsWith('first')));
      // The operator reads it from the pods that have ended, and may not have looked at them yet.
      const saved = status!.checkpoint?.step ?? 0;
      assert(saved >= status!.progress.step, 'the preempted trainers have written no checkpoint');
    });
    assert(status!.progress.step >= 1);
    await ns.reachesPhase('urgent', 'Succeeded');

    const resumed = await reachesStep(ns, 'first', { attempt: 1, step: status!.checkpoint.step + 1 });
    assert.deepEqual(restartsOf(resumed), { counted: 0, disruptions: 0 });
    assert.equal(await stepResumedFrom(ns, 'first-1-0'), status!.checkpoint.step);
    assert.equal((await ns.get('facetrainjob', 'second')).status!.startTime, undefined);
    await ns.reachesPhase('first', 'Succeeded', { milliseconds: 30 * MINUTE });
    await ns.reachesPhase('second', 'Succeeded');
    const evictions = (await ns.events('FaceTrainJob', 'first')).filter(({ reason }) => reason === 'QueueEvicted');
    assert.equal(evictions.length, 1);
    assert(live.most.length >= 3 && live.most.length <= 4, live.most.join());
  },

  'an elastic gang that is scaled down gives its quota back, and a job that waits gets it': async (ns) => {
    await applyQueue(ns, 4);
    using live = await LivePods.watch(ns);
    const spec = { queue: queueOf(ns, 'low'), globalBatchSize: 64 };
    await ns.apply(
      trainJob('elastic', {
        replicas: 4,
        shell: AT_THE_GATE,
        ...gated,
        trainers: { elastic: { minReplicas: 2, maxReplicas: 4 } },
        spec,
      }),
    );
    await ns.waitFor('elastic', ({ status }) => assert.equal(status?.trainers?.active, 4));
    await ns.apply(trainJob('waiting', { shell: 'exit 0', spec }));
    await waitsFor(ns, 'waiting', /insufficient unused quota for pods/);

    await ns.kubectl('scale', 'facetrainjob/elastic', '--replicas=3');
    await ns.reachesPhase('waiting', 'Succeeded');
    const { status } = await ns.waitFor('elastic', (job) => assert.equal(job.status!.trainers.active, 3));
    assert.deepEqual([status!.attempt, status!.trainers.desired], [1, 3]);
    // Kubernetes has Workloads, too.
    const workload = 'workloads.kueue.x-k8s.io/facetrainjob-elastic';
    const reclaimable = await ns.kubectl('get', workload, '-o', 'jsonpath={.status.reclaimablePods}');
    assert.deepEqual(JSON.parse(reclaimable), [{ name: 'main', count: 1 }]);
    await openGate(ns);
    const job = await ns.reachesPhase('elastic', 'Succeeded');
    assert.equal(live.most.length, 4, live.most.join());
    assert.deepEqual(restartsOf(job), { counted: 0, disruptions: 0 });
    // Kueue forgets the Workload of a job that is deleted.
    await ns.kubectl('delete', 'facetrainjob', 'elastic', 'waiting');
    await ns.kubectl('wait', workload, '--for=delete', '--timeout=5m');
  },

  'a training in a queue whose number of trainers is changed four times': async (ns) => {
    await applyQueue(ns, 4);
    using live = await LivePods.watch(ns);
    await applyExample(ns, 'changing', (spec) => {
      trainLongWithoutEvaluation(spec);
      spec.globalBatchSize = 12;
      spec.trainers.replicas = 4;
      spec.trainers.elastic = { minReplicas: 2, maxReplicas: 4, scaleDownSeconds: 120, scaleUpSeconds: 5 };
      spec.queue = queueOf(ns, 'low');
    });
    await trainsWith(ns, 'changing', 4, 0);
    for (const [index, replicas] of [3, 4, 2, 4].entries()) {
      await ns.kubectl('scale', 'facetrainjob/changing', `--replicas=${replicas}`);
      const job = await trainsWith(ns, 'changing', replicas, index + 1);
      assert.deepEqual(restartsOf(job), { counted: 0, disruptions: 0 });
    }
    assert(live.most.length <= 4, live.most.join());
    await ns.kubectl('delete', 'facetrainjob', 'changing');
    await ns.kubectl('wait', 'workloads.kueue.x-k8s.io', '--all', '--for=delete', '--timeout=5m');
  },
};
