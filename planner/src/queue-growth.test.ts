/** An elastic gang in a queue without quota for all its pods: it begins with fewer, and asks for the others. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Condition, FaceTrainJobStatus } from '@facetrain/api';
import fc from 'fast-check';
import { planFaceTrainJob } from './facetrainjob/plan-facetrainjob.ts';
import { firstPodOf } from './names.ts';
import type { Pod, Workload } from './objects.ts';
import type { ObservedPod, ObservedQueue, ObservedWorkload } from './observed.ts';
import type { Action } from './plan.ts';
import { after, at, makeCondition as condition, makeJob, makePod } from './testing/builders.ts';
import { testEnvironment } from './testing/test-environment.ts';

const MIN = 2;
const MAX = 7;
const elastic = (replicas: number, fields: object = {}) =>
  makeJob()
    .trainers({
      replicas,
      elastic: { minReplicas: MIN, maxReplicas: MAX, scaleUpSeconds: 60 },
      resources: { requests: { cpu: 1 } },
    })
    // No trainer reports progress here.
    .with({ queue: { name: 'team' }, progressDeadlineSeconds: 1_000_000, ...fields });

const isTrue = ({ conditions }: ObservedWorkload, type: string): boolean =>
  conditions.some((one) => one.type === type && one.status === 'True');

/** Number of pods that a Workload has quota for, as Kueue counts (totalRequestsFromAdmission). */
const heldBy = (workload: ObservedWorkload): number =>
  isTrue(workload, 'QuotaReserved')
    ? Math.min(workload.count - workload.reclaimable, workload.assignment?.count ?? workload.count)
    : 0;

/** One job, its pods, and a Kueue that admits the oldest Workload first, also in part. */
class World {
  status: FaceTrainJobStatus = {};
  pods: ObservedPod[] = [];
  /** In the order of their creation. */
  workloads: ObservedWorkload[] = [];
  replicas: number;
  quota: number;
  readonly fields: object;
  seconds = 0;
  /** Trainers that have failed. */
  failures = 0;
  #version = 0;

  constructor(replicas: number, quota: number, fields: object = {}) {
    this.replicas = replicas;
    this.quota = quota;
    this.fields = fields;
  }

  get held(): number {
    return this.workloads.reduce((sum, workload) => sum + heldBy(workload), 0);
  }
  get trainers(): ObservedPod[] {
    return this.pods.filter(({ placeholder, deleting }) => !placeholder && !deleting);
  }
  get ready(): string {
    const { status, reason, message } = this.status.conditions!.find(({ type }) => type === 'Ready')!;
    return `${status} ${reason}: ${message}`;
  }

  change(name: string, change: Partial<ObservedWorkload>): void {
    this.workloads = this.workloads.map((each) =>
      each.name === name ? { ...each, ...change, resourceVersion: String(++this.#version) } : each,
    );
  }
  #set(workload: ObservedWorkload, change: Partial<ObservedWorkload>, ...conditions: Condition[]): void {
    const types = conditions.map(({ type }) => type);
    const others = workload.conditions.filter(({ type }) => !types.includes(type));
    this.change(workload.name, { ...change, conditions: [...others, ...conditions] });
  }

  kueue(): void {
    for (const workload of this.workloads) {
      const { count, reclaimable, minCount = count, deleting } = workload;
      if (deleting || isTrue(workload, 'QuotaReserved') || isTrue(workload, 'Finished')) continue;
      const asked = count - reclaimable;
      const granted = Math.min(asked, this.quota - this.held);
      if (granted >= Math.min(minCount, asked))
        this.#set(
          workload,
          { assignment: { count: granted, flavors: ['gpus'], hasTopology: false } },
          condition('QuotaReserved', 'True'),
          condition('Admitted', 'True'),
          condition('Evicted', 'False'),
        );
      else
        this.#set(
          workload,
          {},
          condition('QuotaReserved', 'False', 'Because', `${asked - (this.quota - this.held)} pods short`),
        );
    }
  }
  evict(name: string): void {
    const workload = this.workloads.find((each) => each.name === name);
    if (workload && isTrue(workload, 'Admitted'))
      this.#set(workload, {}, condition('Evicted', 'True', 'Because', 'preempted'));
  }
  /** Kueue preempts the newest first. */
  setQuota(pods: number): void {
    this.quota = pods;
    let held = this.held;
    for (const workload of [...this.workloads].reverse()) {
      if (held <= pods) break;
      this.evict(workload.name);
      held -= heldBy(workload);
    }
  }
  /** The kubelet starts pods, and ends those that are being deleted. */
  kubelet(): void {
    this.pods = this.pods.flatMap((pod): ObservedPod[] => {
      if (pod.deleting) return [];
      return [pod.phase === 'Failed' ? pod : { ...pod, phase: 'Running', ready: true, node: 'n' }];
    });
  }
  /** A trainer fails: of the newest attempt the one with this rank. */
  fail(rank: number): void {
    const pod = this.trainers.findLast((each) => each.rank === rank)!;
    this.failures++;
    this.pods = this.pods.map((each) =>
      each === pod ? { ...each, phase: 'Failed', ready: false, exitCode: 1, finishedAt: at(this.seconds) } : each,
    );
  }

  reconcile(crashAfter = Infinity): void {
    this.seconds += 10;
    const workload = this.workloads.find(({ first }) => first === 0);
    const growth = this.workloads.filter(({ first }) => first > 0);
    const queue: ObservedQueue = {
      workloads: 'Listed',
      flavors: { gpus: { nodeSelector: { pool: 'gpus' } } },
      ...(workload && { workload }),
      ...(growth.length > 0 && { growth }),
    };
    const observed = elastic(this.replicas, this.fields).observe(this.status, this.pods, { queue });
    const { actions, status } = planFaceTrainJob(observed, after(this.seconds), testEnvironment);
    for (const action of actions.slice(0, crashAfter)) this.#act(action);
    if (actions.length <= crashAfter) this.status = status;
    this.check();
  }
  /** Until all that can happen has happened. */
  settle(rounds = 30): void {
    for (let round = 0; round < rounds; round++) {
      this.reconcile();
      this.kueue();
      this.kubelet();
    }
    this.reconcile();
  }

  #act(action: Action): void {
    if (action.type === 'create' && action.object.kind === 'Workload') this.#createWorkload(action.object);
    else if (action.type === 'create' && action.object.kind === 'Pod') this.#createPod(action.object);
    else if (action.type === 'delete' && action.kind === 'Pod')
      this.pods = this.pods.map((pod) => (pod.uid === action.uid ? { ...pod, deleting: true } : pod));
    else if (action.type === 'delete' && action.kind === 'Workload') this.change(action.name, { deleting: true });
    else if (action.type === 'patchWorkload') this.#patch(action);
    this.workloads = this.workloads.filter(({ deleting, finalizers }) => !deleting || finalizers.length > 0);
  }
  #createWorkload({ metadata, spec }: Workload): void {
    const { count, minCount } = spec.podSets[0]!;
    assert(
      this.workloads.every(({ name }) => name !== metadata.name),
      `${metadata.name} exists`,
    );
    if (firstPodOf(metadata.name) > 0)
      assert.partialDeepStrictEqual(spec.podSets[0]!.template.spec, { nodeSelector: { pool: 'gpus' } });
    this.workloads.push({
      name: metadata.name,
      uid: `w${++this.#version}`,
      resourceVersion: String(this.#version),
      generation: 1,
      deleting: false,
      finalizers: metadata.finalizers!,
      specDigest: metadata.labels['facetrain.dev/spec-digest']!,
      first: firstPodOf(metadata.name),
      count,
      ...(minCount !== undefined && { minCount }),
      reclaimable: 0,
      active: true,
      conditions: [],
      checks: [],
    });
  }
  #createPod({ metadata, spec }: Pod): void {
    const label = (name: string) => metadata.labels[`facetrain.dev/${name}`];
    const [attempt, rank] = [Number(label('attempt')), Number(label('rank'))];
    const placeholder = label('placeholder') === 'true';
    const name = metadata.annotations!['kueue.x-k8s.io/workload'];
    const lender = this.workloads.find((each) => each.name === name)!;
    assert(rank >= lender.first && rank < lender.first + heldBy(lender), `pod ${rank} has no quota of ${name}`);
    assert.deepEqual(spec.nodeSelector, { pool: 'gpus' });
    const built = makePod(rank, attempt).with({ gangSize: Number(label('gang-size')), createdAt: at(this.seconds) });
    const uid = `p${++this.#version}`;
    this.pods.push({ ...built.build(), uid, ...(placeholder && { placeholder }) });
  }
  #patch({ name, resourceVersion, status, finalizers }: Extract<Action, { type: 'patchWorkload' }>): void {
    const workload = this.workloads.find((each) => each.name === name);
    if (workload?.resourceVersion !== resourceVersion) return;
    if (finalizers) this.change(name, { finalizers });
    if (status?.conditions) this.change(name, { conditions: status.conditions as Condition[] });
    if (status && 'admission' in status) {
      const { assignment: _, ...rest } = workload;
      this.workloads = this.workloads.map((each) =>
        each.name === name ? { ...rest, conditions: each.conditions, resourceVersion: each.resourceVersion } : each,
      );
    }
    if (status?.reclaimablePods) {
      const [{ count }] = status.reclaimablePods as [{ count: number }];
      assert(count >= workload.reclaimable, 'Kueue’s webhook refuses a smaller number');
      this.change(name, { reclaimable: count });
    }
  }

  check(): void {
    const alive = this.pods.filter(({ phase }) => phase !== 'Failed').length;
    assert(alive <= this.held, `${alive} pods are alive with quota for ${this.held}`);
    assert.equal(this.status.restarts?.count ?? 0, this.failures, 'a restart was counted');
  }
}

describe('a gang of four with quota for three', () => {
  const begin = () => {
    const world = new World(4, 3);
    world.settle();
    return world;
  };

  test('begins with three, and says what the fourth waits for', () => {
    const world = begin();
    assert.equal(world.trainers.length, 3);
    assert.deepEqual(
      world.workloads.map(({ name, count, minCount }) => [name, count, minCount]),
      [
        ['facetrainjob-faces', 4, 2],
        ['facetrainjob-faces.3', 1, undefined],
      ],
    );
    assert.equal(
      world.ready,
      'True PodsReady: all 3 pods are ready; queue team: quota for 1 more pod is waited for: 1 pods short',
    );
  });

  test('goes on with four when there is quota, and with three when that is taken back', () => {
    const world = begin();
    world.setQuota(4);
    world.settle();
    assert.equal(world.trainers.length, 4);
    assert.equal(world.ready, 'True PodsReady: all 4 pods are ready');
    world.setQuota(3);
    world.reconcile();
    assert.partialDeepStrictEqual(world.status, { attempt: 2, trainers: { desired: 3 } });
    assert.match(world.ready, /^False ScaledDown: Kueue takes the quota of 1 of 4 pods back, .* with 3: .*preempted$/);
    world.settle();
    assert.equal(world.trainers.length, 3);
    assert.deepEqual(
      world.status.scaling!.history.map(({ trainers, reason }) => `${trainers} ${reason}`),
      ['4 ScaledUp', '3 ScaledDown'],
    );
  });

  test('stops when the quota of all is taken back, and comes back with two', () => {
    const world = begin();
    world.setQuota(2);
    world.reconcile();
    assert.match(world.ready, /^False QueueEvicted: /);
    world.settle();
    assert.equal(world.trainers.length, 2);
  });

  test('asks again in the right number when users change their mind', () => {
    const world = begin();
    world.replicas = 6;
    world.settle();
    assert.deepEqual(
      world.workloads.map(({ name, count }) => `${name} ${count}`),
      ['facetrainjob-faces 4', 'facetrainjob-faces.3 3'],
    );
    world.setQuota(5);
    world.settle();
    assert.equal(world.trainers.length, 5);
    world.replicas = 3;
    world.settle();
    assert.deepEqual([world.trainers.length, world.held], [3, 3]);
  });
});

test('a gang that is scaled to three, four, two and six has each time as much quota', () => {
  const world = new World(4, MAX);
  world.settle();
  for (const replicas of [3, 4, 2, 6, 5, 6]) {
    world.replicas = replicas;
    world.settle();
    assert.deepEqual([world.trainers.length, world.held], [replicas, replicas]);
  }
  assert.equal(world.status.attempt, 6);
});

test('places are looked for only where there is quota', () => {
  const world = new World(6, 3);
  world.settle();
  assert.deepEqual(world.pods.filter(({ placeholder }) => placeholder).length, 0);
  world.setQuota(4);
  world.kueue();
  world.reconcile();
  assert.deepEqual(
    world.pods.filter(({ placeholder }) => placeholder).map(({ rank }) => rank),
    [3],
  );
  // Before a node was found, Kueue takes the quota back: the gang trains on.
  world.setQuota(3);
  world.settle();
  assert.deepEqual([world.status.attempt, world.trainers.length, world.pods.length], [0, 3, 3]);
});

test('a gang that needs one domain of a topology does not grow by parts, and says so', () => {
  const world = new World(4, 3, { gang: { topology: { required: 'rack' } } });
  world.settle();
  assert.deepEqual([world.trainers.length, world.workloads.length], [3, 1]);
  assert.match(
    world.ready,
    /quota for 1 more pod needs a new admission of the whole gang.*: suspend the job and resume/,
  );
});

test('a restart keeps the quota, also where more is wished, or a topology needs all of it anew', () => {
  for (const fields of [{}, { gang: { topology: { required: 'rack' } } }]) {
    const world = new World(3, 3, fields);
    world.settle();
    const [before] = world.workloads;
    world.replicas = 5;
    world.fail(1);
    world.settle();
    assert.equal(world.status.restarts?.count, 1);
    const running = world.trainers.filter(({ phase }) => phase === 'Running');
    assert.deepEqual([world.workloads[0]!.uid, running.length], [before!.uid, 3]);
  }
});

const EVENTS: Record<string, (world: World) => void> = {
  kueue: (world) => world.kueue(),
  less: (world) => world.setQuota(Math.max(world.quota - 1, 0)),
  more: (world) => world.setQuota(world.quota + 1),
  evictFirst: (world) => world.evict('facetrainjob-faces'),
  evictGrowth: (world) => world.evict(world.workloads.find(({ first }) => first > 0)?.name ?? ''),
  deleteGrowth: (world) => world.change(world.workloads.find(({ first }) => first > 0)?.name ?? '', { deleting: true }),
  grow: (world) => void (world.replicas = Math.min(world.replicas + 1, MAX)),
  shrink: (world) => void (world.replicas = Math.max(world.replicas - 1, MIN)),
  kubelet: (world) => world.kubelet(),
  reconcile: (world) => world.reconcile(),
  crash: (world) => world.reconcile(1),
  laterCrash: (world) => world.reconcile(2),
  settle: (world) => world.settle(8),
};

test('whatever Kueue and users do: no pod without quota, and in the end as many pods as there is quota for', () => {
  const histories = fc.array(fc.constantFrom(...Object.keys(EVENTS)), { maxLength: 40 });
  fc.assert(
    fc.property(histories, fc.integer({ min: MIN, max: MAX }), (names, end) => {
      const world = new World(4, 4);
      for (const name of names) EVENTS[name]!(world);
      world.setQuota(end);
      world.settle(80);
      assert.equal(world.trainers.length, Math.min(end, world.replicas));
      world.setQuota(MAX);
      world.settle(80);
      assert.deepEqual([world.trainers.length, world.held], [world.replicas, world.replicas]);
    }),
    { numRuns: 40 },
  );
});
