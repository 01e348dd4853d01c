import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JobObject, PodObject, WorkloadObject } from '@facetrain/operator/controllers/resources';
import { Label } from '@facetrain/planner/names';
import { HistoryCheck, type StoredChange } from './history.ts';

const UID = 'uid-of-faces';

const pod = (
  attempt: number,
  rank: number,
  phase: string,
  isReady = phase === 'Running',
  world = 2,
  restartCount = 0,
): PodObject =>
  ({
    metadata: {
      name: `faces-${attempt}-${rank}`,
      uid: `pod-${attempt}-${rank}`,
      labels: { [Label.jobUid]: UID, [Label.attempt]: String(attempt), [Label.rank]: String(rank) },
    },
    spec: { containers: [{ env: [{ name: 'WORLD_SIZE', value: String(world) }] }] },
    status: {
      phase,
      conditions: [{ type: 'Ready', status: isReady ? 'True' : 'False' }],
      containerStatuses: [{ name: 'facetrain', restartCount }],
    },
  }) as unknown as PodObject;
/** Whose container the kubelet has started again. */
const restarted = (rank: number, restarts = 1): PodObject => pod(0, rank, 'Running', true, 2, restarts);
const job = (status: object, uid = UID, spec = {}): JobObject =>
  ({ metadata: { name: 'faces', uid, generation: 3 }, spec, status }) as unknown as JobObject;

/** The violations of a history: pods and jobs as they are stored one after the other; a name: that pod is deleted. */
function violationsOf(...history: (PodObject | JobObject | string)[]): string[] {
  const check = new HistoryCheck();
  history.forEach((object, i) => {
    const isPod = typeof object === 'string' || object.metadata.labels !== undefined;
    const name = typeof object === 'string' ? object : object.metadata.name;
    check.next({
      revision: i + 1,
      kind: isPod ? 'pods' : 'facetrainjobs',
      key: `soak/${name}`,
      object: typeof object === 'string' ? null : object,
    } satisfies StoredChange);
  });
  return check.violations;
}

/** A job with two ranks that is restarted once and succeeds. */
const GOOD = [
  job({}),
  job({ attempt: 0, phase: 'Pending' }),
  pod(0, 0, 'Pending'),
  pod(0, 1, 'Pending'),
  pod(0, 0, 'Running'),
  pod(0, 1, 'Running'),
  job({ attempt: 0, phase: 'Running', checkpoint: { step: 10 } }),
  pod(0, 1, 'Failed'),
  job({ attempt: 1, phase: 'Restarting', restarts: { count: 1, disruptions: 0 }, checkpoint: { step: 10 } }),
  'faces-0-0',
  pod(1, 0, 'Running'),
  pod(1, 1, 'Running'),
  job({ attempt: 1, phase: 'Running', checkpoint: { step: 20 } }),
  pod(1, 0, 'Succeeded'),
  'faces-1-0',
  pod(1, 1, 'Succeeded'),
  job({ attempt: 1, phase: 'Succeeded', trainers: { desired: 2 } }),
];

/** A job with two ranks that are started again in their pods. */
const IN_PLACE = [
  job({ attempt: 0 }),
  pod(0, 0, 'Running'),
  pod(0, 1, 'Running'),
  job({ attempt: 0, phase: 'Running' }),
  restarted(1),
  job({
    attempt: 0,
    phase: 'Restarting',
    restarts: { count: 1, disruptions: 0, inPlace: 1 },
    trainers: { containerRestarts: 1 },
  }),
];

test('a history without a fault has no violation', () => {
  assert.deepEqual(violationsOf(...GOOD), []);
  const running = job({ attempt: 0, phase: 'Running', trainers: { containerRestarts: 1 } });
  assert.deepEqual(violationsOf(...IN_PLACE, restarted(0), running, 'faces-0-0', 'faces-0-1'), []);
});

const broken: Record<string, { history: (PodObject | JobObject | string)[]; want: RegExp }> = {
  'two attempts at the same time': {
    history: [job({ attempt: 1 }), pod(0, 0, 'Running'), pod(1, 0, 'Pending')],
    want: /attempt 1 began while faces-0-0 lived/,
  },
  'a pod of an attempt that is not in the status': {
    history: [job({ attempt: 0 }), pod(1, 0, 'Pending')],
    want: /created for attempt 1, and the status says 0/,
  },
  'an attempt that goes back': { history: [job({ attempt: 2 }), job({ attempt: 1 })], want: /attempt 2 became 1/ },
  'an end that does not last': {
    history: [job({ phase: 'Failed' }), job({ phase: 'Pending' })],
    want: /phase Failed became Pending/,
  },
  'a generation that is not there yet': {
    history: [job({ observedGeneration: 4 })],
    want: /observedGeneration 4/,
  },
  'a gang that is called running before it is whole': {
    history: [job({ attempt: 0 }), pod(0, 0, 'Running'), pod(0, 1, 'Running', false), job({ phase: 'Running' })],
    want: /Running, and attempt 0 was never whole/,
  },
  'a queued job of which a pod lives': {
    history: [
      job({ attempt: 0 }),
      pod(0, 0, 'Running'),
      job({ phase: 'Pending', conditions: [{ type: 'Ready', status: 'False', reason: 'Queued' }] }),
    ],
    want: /Queued, and faces-0-0 lived/,
  },
  'a suspension that is over too early': {
    history: [
      job({ attempt: 0 }),
      pod(0, 0, 'Running'),
      job({ attempt: 1, phase: 'Suspended', conditions: [{ type: 'Ready', status: 'True' }] }),
    ],
    want: /Suspended and Ready, and faces-0-0 lived/,
  },
  'a success of one rank of two': {
    history: [job({}), pod(0, 0, 'Succeeded'), job({ phase: 'Succeeded', trainers: { desired: 2 } })],
    want: /Succeeded, and of no attempt all 2 ranks had/,
  },
  'more restarts than attempts': {
    history: [job({ attempt: 1, restarts: { count: 1, disruptions: 1 } })],
    want: /1 \+ 1 restarts at attempt 1/,
  },
  'more restarts than attempts and starts in place': {
    history: [job({ attempt: 1, restarts: { count: 3, disruptions: 0, inPlace: 1 } })],
    want: /3 \+ 0 restarts at attempt 1, 1 of them in place/,
  },
  'a start in place that no kubelet made': {
    history: [job({ attempt: 0 }), pod(0, 0, 'Running'), job({ attempt: 0, trainers: { containerRestarts: 1 } })],
    want: /1 starts in place are counted, of 0/,
  },
  'a gang that is called running before all were started again': {
    history: [...IN_PLACE, job({ attempt: 0, phase: 'Running', trainers: { containerRestarts: 1 } })],
    want: /Running, and of 1 starts in place some trainers had 0,1/,
  },
  'a gang whose ranks do not agree on their number': {
    history: [job({ attempt: 0 }), pod(0, 0, 'Pending'), pod(0, 1, 'Pending', false, 3)],
    want: /WORLD_SIZE 3 in a gang of 2/,
  },
  'a gang that changes its size after it was whole': {
    history: [
      job({ attempt: 0 }),
      pod(0, 0, 'Running'),
      pod(0, 1, 'Running'),
      'faces-0-0',
      'faces-0-1',
      pod(0, 0, 'Pending', false, 1),
    ],
    want: /WORLD_SIZE 1 in a gang of 2/,
  },
  'a status with another number of trainers than those that run': {
    history: [
      job({ attempt: 0 }),
      pod(0, 0, 'Running'),
      pod(0, 1, 'Running'),
      job({ attempt: 0, phase: 'Running', trainers: { desired: 3 } }),
    ],
    want: /Running with 3 trainers, and WORLD_SIZE of attempt 0 is 2/,
  },
  'an elastic gang that is too small': {
    history: [job({ trainers: { desired: 1 } }, UID, { trainers: { elastic: { minReplicas: 2 } } })],
    want: /1 trainers of an elastic job that has at least 2/,
  },
  'a restart for a container that is gone, in a pod that is being evicted': {
    history: [job({ attempt: 1, restarts: { count: 1, lastReason: 'ContainerStatusUnknown' } })],
    want: /a restart for ContainerStatusUnknown/,
  },
  'a checkpoint that goes back': {
    history: [job({ checkpoint: { step: 20 } }), job({ checkpoint: { step: 10 } })],
    want: /checkpoint of step 20 became 10/,
  },
};
for (const [name, { history, want }] of Object.entries(broken))
  test(`finds ${name}`, () => {
    const violations = violationsOf(...history);
    assert.equal(violations.length, 1, violations.join('\n'));
    assert.match(violations[0]!, want);
  });

test('an attempt that was never whole is made anew with another size, once none of its pods is left', () => {
  const history = [job({ attempt: 0 }), pod(0, 0, 'Running'), 'faces-0-0', pod(0, 0, 'Running', true, 1)];
  assert.deepEqual(violationsOf(...history), []);
});

test('another job of the same name begins anew', () => {
  assert.deepEqual(
    violationsOf(job({ attempt: 3, phase: 'Failed' }), job({}, 'another'), job({ attempt: 0 }, 'another')),
    [],
  );
});

const workload = (conditions: Record<string, boolean>, count = 2, assigned = count, reclaimable = 0): WorkloadObject =>
  ({
    metadata: { name: 'facetrainjob-faces' },
    spec: { podSets: [{ count }] },
    status: {
      conditions: Object.entries(conditions).map(([type, holds]) => ({ type, status: holds ? 'True' : 'False' })),
      admission: { podSetAssignments: [{ count: assigned }] },
      reclaimablePods: [{ count: reclaimable }],
    },
  }) as unknown as WorkloadObject;
const queuedPod = (rank: number, phase = 'Running'): PodObject => {
  const { metadata, ...rest } = pod(0, rank, phase);
  const annotations = { 'kueue.x-k8s.io/workload': 'facetrainjob-faces' };
  return { ...rest, metadata: { ...metadata, namespace: 'soak', annotations } };
};
const LENT = { QuotaReserved: true };

/** The violations of a history in a queue with quota for three pods. */
function queueViolations(...history: (PodObject | WorkloadObject | string)[]): string[] {
  const check = new HistoryCheck(3);
  history.forEach((object, i) => {
    const isWorkload = typeof object === 'string' ? object.startsWith('facetrainjob-') : !('phase' in object.status!);
    check.next({
      revision: i + 1,
      kind: isWorkload ? 'workloads' : 'pods',
      key: `soak/${typeof object === 'string' ? object : object.metadata.name}`,
      object: typeof object === 'string' ? null : object,
    });
  });
  return check.violations;
}

test('a gang that keeps its quota until its pods have ended has no violation', () => {
  const ended = [queuedPod(0, 'Succeeded'), queuedPod(1, 'Succeeded'), workload({ ...LENT, Finished: true })];
  assert.deepEqual(queueViolations(workload(LENT), queuedPod(0), queuedPod(1), ...ended), []);
  const evicted = ['faces-0-0', 'faces-0-1', workload({ QuotaReserved: false }), 'facetrainjob-faces'];
  assert.deepEqual(queueViolations(workload(LENT), queuedPod(0), queuedPod(1), ...evicted), []);
});

const withoutQuota: Record<string, { history: (PodObject | WorkloadObject | string)[]; want: RegExp }> = {
  'a pod before the quota': {
    history: [workload({ QuotaReserved: false }), queuedPod(0)],
    want: /faces-0-0 lived, and soak\/facetrainjob-faces has quota for 0/,
  },
  'quota that is given back while a pod lives': {
    history: [workload(LENT), queuedPod(0), workload({ QuotaReserved: false })],
    want: /has quota for 0/,
  },
  'a Workload that is removed while a pod lives': {
    history: [workload(LENT), queuedPod(0), 'facetrainjob-faces'],
    want: /has quota for 0/,
  },
  'more pods than Kueue admitted of those that were asked for': {
    history: [workload(LENT, 2, 1), queuedPod(0), queuedPod(1)],
    want: /has quota for 1/,
  },
  'quota of a pod that lives, called reclaimable': {
    history: [workload(LENT), queuedPod(0), queuedPod(1), workload(LENT, 2, 2, 1)],
    want: /has quota for 1/,
  },
};

for (const [name, { history, want }] of Object.entries(withoutQuota))
  test(`finds ${name}`, () => {
    assert.match(queueViolations(...history).join('\n'), want);
  });

test('the pods of a gang are counted together; what Kueue lends beyond its own quota is counted apart', () => {
  const check = new HistoryCheck(3);
  const put = (kind: StoredChange['kind'], name: string, object: StoredChange['object']) =>
    check.next({ revision: 1, kind, key: `soak/${name}`, object });
  put('workloads', 'facetrainjob-faces', workload(LENT, 1));
  put('workloads', 'facetrainjob-faces.1', workload(LENT, 1));
  put('pods', 'faces-0-0', queuedPod(0));
  put('pods', 'faces-0-1', queuedPod(1));
  put('pods', 'faces-0-0', null);
  // Rank 1 lives, and the quota that was meant for rank 0 is left.
  put('workloads', 'facetrainjob-faces.1', null);
  put('workloads', 'facetrainjob-others', workload(LENT, 3));
  assert.deepEqual([check.violations, check.overlent], [[], 1]);
  put('workloads', 'facetrainjob-faces', null);
  assert.match(check.violations.join(), /faces-0-1 lived, and soak\/facetrainjob-faces has quota for 0/);
});
