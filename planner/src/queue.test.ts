import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Condition, FaceTrainJobStatus } from '@facetrain/api';
import fc from 'fast-check';
import { planFaceTrainJob } from './facetrainjob/plan-facetrainjob.ts';
import type { Pod, Workload } from './objects.ts';
import type { ObservedFaceTrainJob, ObservedPod, ObservedQueue, ObservedWorkload } from './observed.ts';
import type { Action } from './plan.ts';
import { planQuantizeJob } from './quantizejob/plan-quantizejob.ts';

import {
  after,
  at,
  makeCondition as condition,
  makeJob,
  makeObservedWorkload,
  makePod,
  makeQuantizeJob,
} from './testing/builders.ts';
import { testEnvironment } from './testing/test-environment.ts';
import { WORKLOAD_FINALIZER } from './workload.ts';

const RESOURCES = { requests: { cpu: 1 } };
const job = () =>
  makeJob()
    .trainers({ resources: RESOURCES })
    .with({ queue: { name: 'team' } });
const plan = (observed: ObservedFaceTrainJob, seconds = 100) =>
  planFaceTrainJob(observed, after(seconds), testEnvironment);
const ready = ({ status }: { status: FaceTrainJobStatus }) => {
  const { reason, message } = status.conditions!.find(({ type }) => type === 'Ready')!;
  return `${reason}: ${message}`;
};
const createdOf = (actions: Action[]) => actions.flatMap((action) => (action.type === 'create' ? [action.object] : []));
const workloadIn = (actions: Action[]) => createdOf(actions).find(({ kind }) => kind === 'Workload') as Workload;

const ADMITTED = [condition('QuotaReserved', 'True'), condition('Admitted', 'True')];

/** The digest of the Workload that the planner makes for a job. */
const digestOf = (observed: ObservedFaceTrainJob): string =>
  workloadIn(plan({ ...observed, status: {}, pods: [], queue: NO_WORKLOAD }).actions).metadata.labels[
    'facetrain.dev/spec-digest'
  ]!;

const NO_WORKLOAD: ObservedQueue = { workloads: 'Listed', flavors: {} };
const queueWith = (workload: Partial<ObservedWorkload> = {}, more: Partial<ObservedQueue> = {}): ObservedQueue => ({
  ...NO_WORKLOAD,
  workload: makeObservedWorkload({ specDigest: digestOf(job().observe()), ...workload }),
  ...more,
});

const STARTED: FaceTrainJobStatus = { observedGeneration: 1, attempt: 0, startTime: at(0), attemptStartTime: at(0) };
const RUNNING = [makePod(0).running().build(), makePod(1).running().build()];

test('a job with a queue makes a Workload for all its pods, and nothing else', () => {
  const observed = job()
    .with({ queue: { name: 'team', priorityClassName: 'high' } })
    .trainers({ podTemplate: { spec: { nodeSelector: { zone: 'a' }, runtimeClassName: 'gpu' } }, resources: RESOURCES })
    .observe({}, [], { queue: { ...NO_WORKLOAD, priority: 7 } });
  const made = plan(observed);
  assert.deepEqual(
    createdOf(made.actions).map(({ kind }) => kind),
    ['Workload'],
  );
  const { metadata, spec } = workloadIn(made.actions);
  assert.partialDeepStrictEqual(metadata, {
    name: 'facetrainjob-faces',
    finalizers: [WORKLOAD_FINALIZER],
    ownerReferences: [{ kind: 'FaceTrainJob', name: 'faces', controller: true }],
  });
  assert.partialDeepStrictEqual(spec, {
    queueName: 'team',
    priorityClassRef: { group: 'kueue.x-k8s.io', kind: 'WorkloadPriorityClass', name: 'high' },
    priority: 7,
    podSets: [
      {
        name: 'main',
        count: 2,
        template: {
          spec: {
            nodeSelector: { zone: 'a' },
            runtimeClassName: 'gpu',
            restartPolicy: 'Never',
            containers: [{ name: 'facetrain', resources: { requests: { cpu: '1' } } }],
          },
        },
      },
    ],
  });
  assert.equal('volumes' in spec.podSets[0]!.template.spec, false);
  assert.equal(made.status.startTime, undefined);
});

test('the Workload of a former version, made for containers that fetch without resources, still counts', () => {
  const fetching = (credentials?: object) =>
    job().with({
      dataset: { uri: 's3://faces/train' },
      evaluation: { sets: [{ name: 'lfw', uri: 's3://faces/lfw.bin', ...(credentials && { s3: credentials }) }] },
    });
  const cases = {
    'one input': { made: job().with({ dataset: { uri: 's3://faces/train' } }), want: '34e28401aa762603' },
    'two inputs, which one container fetches now': { made: fetching(), want: '8af19ae514eed142' },
    'two inputs with other credentials': { made: fetching({ secretRef: { name: 'k' } }), want: '8af19ae514eed142' },
  };
  for (const [name, { made, want }] of Object.entries(cases)) {
    assert.equal(digestOf(made.observe()), want, name);
    const queue = queueWith({ conditions: ADMITTED, specDigest: want });
    const pods = createdOf(plan(made.observe({}, [], { queue })).actions).filter(({ kind }) => kind === 'Pod') as Pod[];
    assert.equal(pods.length, 2, name);
    assert.deepEqual(pods[0]!.spec.initContainers![0]!.resources, { requests: { cpu: '1' } }, name);
  }
});

test('what a job in a queue waits for is in its status, in Kueue’s words', () => {
  const cases: Record<string, { queue: ObservedQueue; want: RegExp }> = {
    'no Kueue': {
      queue: { workloads: 'NotServed', flavors: {} },
      want: /^QueueUnavailable: spec.queue: team; .*install Kueue/,
    },
    'Workloads that were not listed': {
      queue: { workloads: 'NotListed', flavors: {} },
      want: /^QueueUnavailable: spec.queue: team; .* cannot list Workloads .* see to it that Kueue runs$/,
    },
    'no priority class': {
      queue: { ...NO_WORKLOAD, problem: 'WorkloadPriorityClass high: not found' },
      want: /^QueueUnavailable: spec.queue: team; WorkloadPriorityClass high: not found$/,
    },
    'a new Workload': { queue: queueWith(), want: /^Queued: queue team: Kueue has not looked at the Workload yet$/ },
    'no quota': {
      queue: queueWith({ conditions: [condition('QuotaReserved', 'False', 'Pending', '2 more cpu needed')] }),
      want: /^Queued: queue team: 2 more cpu needed$/,
    },
    'an admission check': {
      queue: queueWith({
        conditions: [condition('QuotaReserved', 'True')],
        checks: [
          { name: 'done', state: 'Ready', message: '' },
          { name: 'nodes', state: 'Pending', message: 'two are made' },
        ],
      }),
      want: /^Queued: queue team: quota is reserved; admission checks: nodes \(Pending\): two are made$/,
    },
    'a deactivated Workload': { queue: queueWith({ active: false }), want: /^Queued: .*set its spec.active to true/ },
    'an evicted Workload': {
      queue: queueWith({ conditions: [...ADMITTED, condition('Evicted', 'True', 'Preempted', 'by another')] }),
      want: /^Queued: queue team: evicted: Preempted: by another$/,
    },
    'a flavor that was not read': {
      queue: queueWith({ conditions: ADMITTED, assignment: { flavors: ['gpus'], hasTopology: false } }),
      want: /^Queued: queue team: admitted; ResourceFlavor gpus has not been read yet$/,
    },
    'a Workload for other pods': { queue: queueWith({ specDigest: 'other' }), want: /^Queued: .* made anew/ },
  };
  for (const [name, { queue, want }] of Object.entries(cases)) {
    const made = plan(job().observe({}, [], { queue }));
    assert.match(ready(made), want, name);
    assert.deepEqual(createdOf(made.actions), [], name);
  }
});

test('a job whose label names a queue, and whose spec names none, does not start past its quota', () => {
  const labelled: ObservedQueue = { ...NO_WORKLOAD, label: 'team' };
  const plans = {
    training: plan(makeJob().observe({}, [], { queue: labelled })),
    quantization: planQuantizeJob(makeQuantizeJob().observe({}, [], { queue: labelled }), after(100), testEnvironment),
    'on the manager of MultiKueue': plan(
      makeJob().with({ managedBy: 'kueue.x-k8s.io/multikueue' }).observe({}, [], { queue: labelled }),
    ),
  };
  for (const [name, { actions, status, events }] of Object.entries(plans)) {
    assert.deepEqual(actions, [], name);
    const stalled = status.conditions!.find(({ type }) => type === 'Stalled')!;
    assert.deepEqual([stalled.status, stalled.reason], ['True', 'QueueNotSet'], name);
    assert.match(stalled.message, /^label kueue\.x-k8s\.io\/queue-name: team; a queue is set by spec\.queue\.name/);
    assert.deepEqual(
      events.map(({ type, reason }) => [type, reason]),
      [['Warning', 'Stalled']],
      name,
    );
  }
  // Without Kueue the label says nothing; spec.queue decides; and a gang that runs goes on.
  for (const [made, status, pods, queue] of [
    [makeJob(), {}, [], { workloads: 'NotServed', flavors: {}, label: 'team' }],
    [job(), {}, [], { ...NO_WORKLOAD, label: 'other' }],
    [makeJob(), STARTED, RUNNING, labelled],
  ] as const) {
    const { conditions = [] } = plan(made.observe(status, [...pods], { queue })).status;
    assert(conditions.every(({ reason }) => reason !== 'QueueNotSet'));
  }
});

test('no deadline runs in a queue', () => {
  const observed = job()
    .with({ activeDeadlineSeconds: 10, pendingDeadlineSeconds: 10 })
    .observe({ observedGeneration: 1, attempt: 1 }, [], { queue: queueWith() });
  const first = plan(observed, 100);
  assert.equal(plan({ ...observed, status: first.status }, 10_000).status.phase, 'Pending');
});

test('a job waits while Workloads are not listed: it is not stalled, and no deadline runs', () => {
  const unread: ObservedQueue = { workloads: 'NotListed', flavors: {} };
  const limited = job().with({ activeDeadlineSeconds: 1000, pendingDeadlineSeconds: 10 });
  const step = (status: FaceTrainJobStatus, queue: ObservedQueue, seconds: number) =>
    plan(limited.observe(status, [], { queue }), seconds).status;
  const queued = step({ observedGeneration: 1, attempt: 1, startTime: at(0) }, queueWith(), 100);
  const waiting = step(queued, unread, 200);
  const still = step(waiting, unread, 10_000);
  for (const status of [waiting, still]) {
    assert.partialDeepStrictEqual(status, { phase: 'Pending', startTime: at(0), queuedTime: at(100) });
    assert.equal(status.conditions!.find(({ type }) => type === 'Stalled')?.status === 'True', false);
  }
  const { status, actions } = plan(limited.observe(still, [], { queue: queueWith({ conditions: ADMITTED }) }), 10_100);
  assert.partialDeepStrictEqual(status, { queuedSeconds: 10_000, attemptStartTime: at(10_100) });
  assert.equal(createdOf(actions).filter(({ kind }) => kind === 'Pod').length, 2);
  // Where nobody serves Workloads, a user has to act.
  const { conditions } = step(queued, { workloads: 'NotServed', flavors: {} }, 200);
  assert.equal(conditions!.find(({ type }) => type === 'Stalled')!.status, 'True');
});

test('pods of an admitted job are where flavors and admission checks want them', () => {
  const placement = { nodeSelector: { pool: 'gpus' }, tolerations: [{ key: 'gpu', operator: 'Exists' }] };
  const queue = queueWith(
    {
      conditions: ADMITTED,
      assignment: { flavors: ['gpus'], hasTopology: true },
      checks: [
        {
          name: 'nodes',
          state: 'Ready',
          message: '',
          update: { annotations: { made: 'yes', 'facetrain.dev/writes-to': 'forged' }, labels: { rack: '1' } },
        },
      ],
    },
    { flavors: { gpus: placement } },
  );
  const made = createdOf(plan(job().observe({}, [], { queue })).actions).filter(({ kind }) => kind === 'Pod') as Pod[];
  assert.equal(made.length, 2);
  for (const { metadata, spec } of made) {
    assert.deepEqual(spec.nodeSelector, placement.nodeSelector);
    assert.deepEqual(spec.tolerations!.at(-1), placement.tolerations[0]);
    assert.deepEqual(spec.schedulingGates, [{ name: 'kueue.x-k8s.io/topology' }]);
    assert.partialDeepStrictEqual(metadata.labels, { rack: '1', 'kueue.x-k8s.io/podset': 'main' });
    assert.partialDeepStrictEqual(metadata.annotations, {
      made: 'yes',
      'kueue.x-k8s.io/workload': 'facetrainjob-faces',
    });
    assert.notEqual(metadata.annotations!['facetrain.dev/writes-to'], 'forged');
  }
});

test('pods that look for room for an elastic gang do so where the flavors are, and not before these were read', () => {
  const elastic = () =>
    job().trainers({
      replicas: 4,
      elastic: { minReplicas: 1, maxReplicas: 4, scaleUpSeconds: 60 },
      resources: RESOURCES,
    });
  const gpus = { nodeSelector: { pool: 'gpus' }, tolerations: [{ key: 'gpu', operator: 'Exists' }] };
  const status: FaceTrainJobStatus = {
    ...STARTED,
    trainers: { desired: 2, active: 2, ready: 2, succeeded: 0, failed: 0 },
    scaling: { replicas: 4, resizes: 1, failedGrowths: 0, history: [] },
  };
  const lent = {
    conditions: ADMITTED,
    specDigest: digestOf(elastic().observe()),
    count: 4,
    assignment: { flavors: ['gpus'], hasTopology: false },
  };
  const placeholders = (flavors: ObservedQueue['flavors']) =>
    createdOf(plan(elastic().observe(status, RUNNING, { queue: queueWith(lent, { flavors }) })).actions).filter(
      ({ metadata }) => metadata.labels['facetrain.dev/placeholder'] === 'true',
    ) as Pod[];
  assert.deepEqual(placeholders({}), []);
  const made = placeholders({ gpus });
  assert.equal(made.length, 2);
  for (const { spec } of made) {
    assert.deepEqual(spec.nodeSelector, gpus.nodeSelector);
    assert.deepEqual(spec.tolerations!.at(-1), gpus.tolerations[0]);
  }
});

describe('an elastic gang of four in a queue', () => {
  const elastic = (replicas: number) =>
    job().trainers({ replicas, elastic: { minReplicas: 1, maxReplicas: 6 }, resources: RESOURCES });
  const specDigest = digestOf(elastic(4).observe());
  const lent = (workload: Partial<ObservedWorkload> = {}) =>
    queueWith({ conditions: ADMITTED, specDigest, count: 4, ...workload });
  const pods = (count: number, attempt = 0) =>
    Array.from({ length: count }, (_, rank) => makePod(rank, attempt).running().build());
  const scaling = (replicas: number) => ({ replicas, resizes: 0, failedGrowths: 0, history: [] });
  const statusOf = (desired: number): FaceTrainJobStatus => ({
    ...STARTED,
    trainers: { desired, active: desired, ready: desired, succeeded: 0, failed: 0 },
    scaling: scaling(4),
  });
  const reclaimed = (actions: Action[]) =>
    actions.flatMap((action) => (action.type === 'patchWorkload' ? [action.status?.reclaimablePods] : []))[0];

  test('gives back the quota of the ranks that are not wished any more, and keeps the rest', () => {
    const resize = plan(elastic(3).observe(statusOf(4), pods(4), { queue: lent() }));
    assert.partialDeepStrictEqual(resize.status, { attempt: 1, trainers: { desired: 3 } });
    assert.deepEqual(resize.actions, []);
    // The pods of the four still run.
    const stopping = plan(elastic(3).observe(resize.status, pods(4), { queue: lent() }));
    assert.equal(reclaimed(stopping.actions), undefined);
    const next = plan(elastic(3).observe(resize.status, [], { queue: lent() }));
    assert.deepEqual(reclaimed(next.actions), [{ name: 'main', count: 1 }]);
    assert.equal(createdOf(next.actions).filter(({ kind }) => kind === 'Pod').length, 3);
    assert.deepEqual(
      next.actions.filter(({ type }) => type === 'delete'),
      [],
    );
    // Then nothing more is given back, also not while the gang is whole.
    const running = elastic(3).observe(next.status, pods(3, 1), { queue: lent({ reclaimable: 1 }) });
    assert.equal(reclaimed(plan(running).actions), undefined);
    assert.deepEqual(reclaimed(plan({ ...running, queue: lent() }).actions), [{ name: 'main', count: 1 }]);
  });

  test('keeps what it was lent when it begins again, and asks anew where it was not lent anything yet', () => {
    const before: FaceTrainJobStatus = { observedGeneration: 1, attempt: 1 };
    const begin = (replicas: number, queue: ObservedQueue) => {
      const { actions } = plan(elastic(replicas).observe(before, [], { queue }));
      const asksAnew = actions.some((action) => action.type === 'delete' && action.kind === 'Workload');
      return asksAnew ? 'asks anew' : createdOf(actions).filter(({ kind }) => kind === 'Pod').length;
    };
    assert.equal(begin(3, lent({ reclaimable: 1 })), 3);
    assert.equal(begin(4, lent({ reclaimable: 1 })), 3);
    assert.equal(begin(5, lent()), 4);
    assert.equal(begin(4, lent({ assignment: { count: 2, flavors: [], hasTopology: false } })), 2);
    assert.equal(begin(4, lent({ minCount: 1 })), 4);
    assert.equal(begin(3, lent({ conditions: [] })), 'asks anew');
    assert.equal(begin(4, lent({ conditions: [], minCount: 3 })), 'asks anew');
    assert.equal(begin(4, lent({ conditions: [], minCount: 1 })), 0);
    assert.equal(begin(3, lent({ conditions: [condition('QuotaReserved', 'True')] })), 0);
    // A user wishes more than is lent as the smallest number.
    const four = job().trainers({ replicas: 6, elastic: { minReplicas: 5, maxReplicas: 6 }, resources: RESOURCES });
    const { actions } = plan(four.observe(before, [], { queue: lent() }));
    assert(actions.some((action) => action.type === 'delete' && action.kind === 'Workload'));
  });

  test('that is evicted while it has two ranks begins with all four', () => {
    const evicted = lent({ conditions: [...ADMITTED, condition('Evicted', 'True', 'Preempted')] });
    const { status } = plan(elastic(4).observe(statusOf(2), pods(2), { queue: evicted }));
    assert.partialDeepStrictEqual(status, { attempt: 1, trainers: { desired: 4 } });
    const back = plan(elastic(4).observe(status, [], { queue: lent() }));
    assert.equal(createdOf(back.actions).filter(({ kind }) => kind === 'Pod').length, 4);
  });
});

test('a job that is evicted keeps its start, and its deadline does not count the time in the queue', () => {
  const limited = job().with({ activeDeadlineSeconds: 1000 });
  const evicted = queueWith({ conditions: [condition('QuotaReserved', 'False'), condition('Evicted', 'True')] });
  const admitted = queueWith({ conditions: ADMITTED });
  const step = (status: FaceTrainJobStatus, queue: ObservedQueue, seconds: number, pods: ObservedPod[] = []) =>
    plan(limited.observe(status, pods, { queue }), seconds).status;
  const queued = step(step(STARTED, evicted, 400, RUNNING), evicted, 400);
  assert.partialDeepStrictEqual(queued, { phase: 'Pending', startTime: at(0), queuedTime: at(400) });
  const later = step(queued, evicted, 5000);
  assert.deepEqual([later.phase, later.queuedTime], ['Pending', at(400)]);
  const again = step(later, admitted, 5400);
  assert.partialDeepStrictEqual(again, { startTime: at(0), queuedSeconds: 5000, attemptStartTime: at(5400) });
  assert.equal(again.queuedTime, undefined);
  const pods = [makePod(0, 1).running().build(), makePod(1, 1).running().build()];
  assert.equal(step(again, admitted, 5999, pods).phase, 'Running');
  assert.equal(step(again, admitted, 6000, pods).phase, 'Failed');
  // A second eviction is counted as well; a suspension begins anew.
  const twice = step(step(again, evicted, 5500, pods), evicted, 5500);
  assert.partialDeepStrictEqual(twice, { queuedTime: at(5500), queuedSeconds: 5000 });
  assert.equal(step(twice, admitted, 5600).queuedSeconds, 5100);
  const suspended = plan(limited.suspended().observe(twice, [], { queue: evicted }), 5600).status;
  assert.deepEqual(
    [suspended.startTime, suspended.queuedTime, suspended.queuedSeconds],
    [undefined, undefined, undefined],
  );
  // A job that has not run yet has no start.
  assert.equal(step({ ...STARTED, attemptStartTime: undefined }, queueWith(), 10).startTime, undefined);
});

test('another image needs no new quota; other resources, another queue and another number of pods do', () => {
  const digest = digestOf(job().observe());
  assert.equal(digestOf(job().trainers({ image: 'other:2' }).observe()), digest);
  for (const other of [
    job().replicas(4),
    job().trainers({ resources: { requests: { cpu: 2 } } }),
    job().with({ queue: { name: 'other' } }),
    job().trainers({ podTemplate: { spec: { tolerations: [{ key: 'spot' }] } } }),
  ])
    assert.notEqual(digestOf(other.observe()), digest);
});

test('without quota a running gang ends, and no failure is counted', () => {
  const lost: Record<string, ObservedQueue> = {
    evicted: queueWith({ conditions: [...ADMITTED, condition('Evicted', 'True', 'Preempted')] }),
    deactivated: queueWith({ conditions: ADMITTED, active: false }),
    deleted: queueWith({ conditions: ADMITTED, deleting: true }),
    gone: NO_WORKLOAD,
  };
  for (const [name, queue] of Object.entries(lost)) {
    const { status, actions, events } = plan(job().observe(STARTED, RUNNING, { queue }));
    assert.deepEqual([status.attempt, status.restarts, actions.length], [1, undefined, 0], name);
    assert.deepEqual(
      events.map(({ reason }) => reason),
      ['QueueEvicted'],
      name,
    );
  }
  const kept: Record<string, ObservedQueue> = {
    'Kueue was uninstalled': { workloads: 'NotServed', flavors: {} },
    'the resources were changed meanwhile': queueWith({ conditions: ADMITTED, specDigest: 'other' }),
  };
  for (const [name, queue] of Object.entries(kept))
    assert.equal(plan(job().observe(STARTED, RUNNING, { queue })).status.attempt, 0, name);
});

test('PodsReady has Kueue’s reasons for a start and for a recovery', () => {
  const [first, second] = RUNNING as [ObservedPod, ObservedPod];
  const starting = [first, { ...second, ready: false }];
  const cases: [ObservedPod[], Condition | undefined, string | undefined][] = [
    [starting, undefined, 'False WaitForStart'],
    [RUNNING, condition('PodsReady', 'False', 'WaitForStart'), 'True Started'],
    [RUNNING, condition('PodsReady', 'True', 'Started'), undefined],
    [starting, condition('PodsReady', 'True', 'Started'), 'False WaitForRecovery'],
    [starting, condition('PodsReady', 'False', 'WaitForRecovery'), undefined],
    [RUNNING, condition('PodsReady', 'False', 'WaitForRecovery'), 'True Recovered'],
    [RUNNING, condition('PodsReady', 'True', 'Recovered'), undefined],
  ];
  for (const [pods, before, want] of cases) {
    const queue = queueWith({ conditions: before ? [...ADMITTED, before] : ADMITTED });
    const patches = plan(job().observe(STARTED, pods, { queue })).actions.filter(
      ({ type }) => type === 'patchWorkload',
    );
    const written = (patches[0] as { status?: { conditions: Condition[] } } | undefined)?.status?.conditions;
    const after = written?.find(({ type }) => type === 'PodsReady');
    assert.equal(after && `${after.status} ${after.reason}`, want);
    // A merge patch replaces the list: Kueue's own conditions stay in it.
    if (written) assert.deepEqual(written.slice(0, 2), ADMITTED);
  }
});

test('a QuantizeJob queues as well, for one pod, and by the queue of its training', () => {
  const small = makeQuantizeJob().with({ queue: { name: 'team' }, quantizer: { resources: RESOURCES } });
  const made = planQuantizeJob(small.observe({}, [], { queue: NO_WORKLOAD }), after(0), testEnvironment);
  assert.equal(workloadIn(made.actions).metadata.name, 'quantizejob-small');
  assert.equal(workloadIn(made.actions).spec.podSets[0]!.count, 1);

  const trained = { ...STARTED, trainingCompletionTime: at(50) };
  const childOf = (quantize: object) => {
    const { actions } = plan(job().quantized(quantize).observe(trained, [], { queue: queueWith() }));
    return (createdOf(actions)[0] as { spec: { queue?: unknown } }).spec.queue;
  };
  assert.deepEqual(childOf({}), { name: 'team' });
  assert.deepEqual(childOf({ queue: { name: 'small' } }), { name: 'small' });
});

test('a training that is over gives its quota back, also while its QuantizeJob cannot be made', () => {
  const foreign = { kind: 'QuantizeJob', name: 'faces-quantize', uid: 'q', owned: false } as const;
  const trained = { ...STARTED, trainingCompletionTime: at(50) };
  const queue = queueWith({ conditions: ADMITTED });
  const { actions, status } = plan(
    job()
      .quantized({})
      .observe(trained, [], { queue, objects: [foreign] }),
  );
  assert.match(ready({ status }), /^NameTaken: /);
  const written = actions.flatMap((action) =>
    action.type === 'patchWorkload' ? (action.status!.conditions as Condition[]) : [],
  );
  assert.equal(written.find(({ type }) => type === 'Finished')?.reason, 'Succeeded');
});

/** One job, its pods, and Kueue with quota that comes and goes. The executor may crash after any action. */
class World {
  status: FaceTrainJobStatus = {};
  pods: ObservedPod[] = [];
  workload: ObservedWorkload | undefined;
  suspend = false;
  #version = 0;
  #seconds = 0;

  get isLent(): boolean {
    return this.workload !== undefined && this.#is('Admitted') && !this.#is('Evicted') && this.workload.active;
  }
  #is(type: string): boolean {
    return this.workload?.conditions.some((one) => one.type === type && one.status === 'True') ?? false;
  }
  #set(...conditions: Condition[]): void {
    const types = conditions.map(({ type }) => type);
    const others = this.workload!.conditions.filter(({ type }) => !types.includes(type));
    this.#replace({ conditions: [...others, ...conditions] });
  }
  #replace(change: Partial<ObservedWorkload>): void {
    this.workload = { ...this.workload!, ...change, resourceVersion: String(++this.#version) };
  }

  admit(): void {
    if (this.workload?.active && !this.workload.deleting && !this.#is('QuotaReserved') && !this.#is('Finished'))
      this.#set(...ADMITTED, condition('Evicted', 'False'));
  }
  evict(): void {
    if (this.#is('Admitted')) this.#set(condition('Evicted', 'True', 'Preempted'));
  }
  setActive(active: boolean): void {
    if (this.workload) this.#replace({ active });
    if (this.workload && !active && this.#is('QuotaReserved')) this.#set(condition('Evicted', 'True', 'Deactivated'));
  }
  deleteWorkload(): void {
    if (this.workload) this.#replace({ deleting: true });
  }
  /** The kubelet starts pods, and ends those that are being deleted. */
  kubelet(): void {
    this.pods = this.pods.flatMap((pod): ObservedPod[] =>
      pod.deleting ? [] : [{ ...pod, phase: 'Running', ready: true, node: 'n' }],
    );
  }

  reconcile(crashAfter = Infinity): void {
    this.#seconds += 10;
    const { workload } = this;
    const builder = job().suspended(this.suspend);
    const queue: ObservedQueue = { ...NO_WORKLOAD, ...(workload && { workload }) };
    const { actions, status } = plan(builder.observe(this.status, this.pods, { queue }), this.#seconds);
    for (const action of actions.slice(0, crashAfter)) this.#act(action);
    if (actions.length <= crashAfter) this.status = status;
    this.check();
  }

  #act(action: Action): void {
    if (action.type === 'create' && action.object.kind === 'Workload') {
      const { metadata } = action.object;
      this.workload = {
        ...queueWith().workload!,
        finalizers: metadata.finalizers!,
        specDigest: metadata.labels['facetrain.dev/spec-digest']!,
        resourceVersion: String(++this.#version),
      };
    } else if (action.type === 'create' && action.object.kind === 'Pod') {
      assert(this.isLent && !this.workload!.deleting, 'a pod without quota');
      const { metadata } = action.object;
      const [attempt, rank] = ['attempt', 'rank'].map((name) => Number(metadata.labels[`facetrain.dev/${name}`]));
      this.pods.push(makePod(rank!, attempt).build());
    } else if (action.type === 'delete' && action.kind === 'Pod') {
      this.pods = this.pods.map((pod) => (pod.uid === action.uid ? { ...pod, deleting: true } : pod));
    } else if (action.type === 'delete' && action.kind === 'Workload') {
      this.#replace({ deleting: true });
    } else if (action.type === 'patchWorkload') {
      if (action.resourceVersion !== this.workload?.resourceVersion) return;
      if (action.status) this.#replace({ conditions: action.status.conditions as Condition[] });
      if (action.finalizers) this.#replace({ finalizers: action.finalizers });
    }
    if (this.workload?.deleting && this.workload.finalizers.length === 0) this.workload = undefined;
  }

  check(): void {
    if (this.pods.length > 0) assert(this.#is('QuotaReserved'), 'the quota of pods that are alive was given back');
    assert.equal(this.status.restarts, undefined, 'a restart was counted');
  }
}

const EVENTS: Record<string, (world: World) => void> = {
  admit: (world) => world.admit(),
  evict: (world) => world.evict(),
  deactivate: (world) => world.setActive(false),
  activate: (world) => world.setActive(true),
  deleteWorkload: (world) => world.deleteWorkload(),
  kubelet: (world) => world.kubelet(),
  suspend: (world) => void (world.suspend = true),
  resume: (world) => void (world.suspend = false),
  reconcile: (world) => world.reconcile(),
  crash: (world) => world.reconcile(1),
  laterCrash: (world) => world.reconcile(2),
};

test('whatever Kueue and users do: no pod without quota, none given back before, and a gang that comes back', () => {
  fc.assert(
    fc.property(fc.array(fc.constantFrom(...Object.keys(EVENTS)), { maxLength: 60 }), (names) => {
      const world = new World();
      for (const name of names) EVENTS[name]!(world);
      world.suspend = false;
      for (let round = 0; round < 20; round++) {
        world.setActive(true);
        world.reconcile();
        world.admit();
        world.kubelet();
      }
      assert.equal(world.status.phase, 'Running');
      world.suspend = true;
      for (let round = 0; round < 6; round++) {
        world.reconcile();
        world.kubelet();
      }
      assert.equal(world.status.phase, 'Suspended');
      assert.equal(world.workload, undefined, 'a suspended job keeps its quota');
    }),
    { numRuns: 300 },
  );
});
