import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { MAX_QUANTIZEJOB_NAME, QuantizeConfig, type QuantizeJobStatus } from '@facetrain/api';
import type { ConfigMap, Pod } from '../objects.ts';
import type { ObservedObject, ObservedPod } from '../observed.ts';
import type { Action } from '../plan.ts';
import { isFetchContainer } from '../pod-storage.ts';
import { after, at, makePod, makeQuantizeJob, type QuantizeJobBuilder } from '../testing/builders.ts';
import { testEnvironment } from '../testing/test-environment.ts';
import { planQuantizeJob } from './plan-quantizejob.ts';

const plan = (observed: ReturnType<QuantizeJobBuilder['observe']>, seconds = 100) =>
  planQuantizeJob(observed, after(seconds), testEnvironment);
const created = (actions: Action[]) => actions.flatMap((action) => (action.type === 'create' ? [action.object] : []));
const childrenOf = (builder: QuantizeJobBuilder) => {
  const [config, pod] = created(plan(builder.observe()).actions);
  return { config: QuantizeConfig.parse(JSON.parse((config as ConfigMap).data['config.json']!)), pod: pod as Pod };
};

const STARTED: QuantizeJobStatus = { observedGeneration: 1, attempt: 0, startTime: at(0), attemptStartTime: at(0) };
const OBJECTS: ObservedObject[] = [{ kind: 'ConfigMap', name: 'small-0-quantizer', uid: 'c', owned: true }];
const pod = (attempt = 0) => makePod(0, attempt, 'small').with({ name: `small-${attempt}-quantizer` });

test('a new job gets its ConfigMap and its pod, in that order', () => {
  const { actions, status } = plan(makeQuantizeJob().observe());
  assert.deepEqual(
    created(actions).map(({ kind, metadata }) => `${kind}/${metadata.name}`),
    ['ConfigMap/small-0-quantizer', 'Pod/small-0-quantizer'],
  );
  assert.partialDeepStrictEqual(status, {
    phase: 'Pending',
    attempt: 0,
    startTime: at(100),
    attemptStartTime: at(100),
  });
});

describe('credentials of the output’s object store', () => {
  const s3 = { endpoint: 'http://store:9000', forcePathStyle: true, secretRef: { name: 'aws' } };
  const output = { uri: 's3://models/small', s3 };
  const published = { uri: 's3://models/small', endpoint: 'http://store:9000', region: null, forcePathStyle: true };
  const keysOf = ({ spec }: Pod) =>
    spec.containers[0]!.env.flatMap((entry) => ('valueFrom' in entry ? [entry.valueFrom.secretKeyRef.key] : []));

  test('are files of the Secret, which follow it', () => {
    const { config, pod } = childrenOf(makeQuantizeJob().with({ output }));
    assert.deepEqual(config.publish, { ...published, credentials: '/mnt/output-credentials' });
    assert.equal(config.outputDirectory, '/mnt/output');
    assert.deepEqual(
      pod.spec.volumes.filter(({ name }) => name.startsWith('output')),
      [
        { name: 'output', emptyDir: {} },
        { name: 'output-credentials', secret: { secretName: 'aws' } },
      ],
    );
    assert.deepEqual(keysOf(pod), []);
  });

  test('are variables for another image, which may not know the files', () => {
    const quantizer = { image: 'registry.example/facetrain:0' };
    const { config, pod } = childrenOf(makeQuantizeJob().with({ output, quantizer }));
    assert.deepEqual(config.publish, published);
    assert(!pod.spec.volumes.some(({ name }) => name === 'output-credentials'));
    assert.deepEqual(keysOf(pod), ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN']);
  });

  test('are those of the pod without a Secret', () => {
    const { config, pod } = childrenOf(makeQuantizeJob().with({ output: { uri: 's3://models/small' } }));
    assert.deepEqual(config.publish, { ...published, endpoint: null, forcePathStyle: false });
    assert.deepEqual(keysOf(pod), []);
  });
});

test('the memory of the search is in bytes, and no part of what decides its result', () => {
  const { config } = childrenOf(makeQuantizeJob().with({ search: { memory: '512Mi' } }));
  assert.equal(config.searchMemoryBytes, 512 * 2 ** 20);
  assert(!('memory' in config.search));
  assert.equal(childrenOf(makeQuantizeJob()).config.searchMemoryBytes, undefined);
});

test('a comparison with the paper’s search is in the config only when it is asked for', () => {
  const { config } = childrenOf(makeQuantizeJob().with({ search: { comparePaper: true } }));
  assert.equal(config.comparePaper, true);
  assert(!('comparePaper' in config.search));
  assert(!('comparePaper' in childrenOf(makeQuantizeJob()).config));
});

test('an output folder is mounted, and nothing is published', () => {
  const { config, pod } = childrenOf(
    makeQuantizeJob().with({
      gate: { minMeanCosine: 0.98, maxTarDrop: 0.02, maxGroupAccuracyDrop: 0.05, maxGroupTarDrop: 0.1 },
      evaluation: { sets: [{ name: 'lfw', uri: 'pvc://d/lfw.bin', groups: { uri: 's3://faces/groups.txt' } }] },
    }),
  );
  assert.partialDeepStrictEqual(config, {
    publish: null,
    outputDirectory: '/mnt/output',
    gate: { maxAccuracyDrop: null, maxTarDrop: 0.02, maxGroupAccuracyDrop: 0.05, maxGroupTarDrop: 0.1 },
    evaluation: { sets: [{ name: 'lfw', path: '/mnt/evaluation-0', groups: '/mnt/evaluation-0-groups' }] },
  });
  const fetches = pod.spec.initContainers?.map(({ name }) => name);
  assert.deepEqual(fetches, ['fetch-evaluation-0-groups']);
  assert.ok(fetches?.every(isFetchContainer), 'its failures are those of an input');
  assert.deepEqual(pod.spec.containers[0]!.args, ['quantize']);
});

test('the pod of a job with the longest name has a valid name, and leaves its host name to the kubelet', () => {
  const { pod } = childrenOf(makeQuantizeJob('q'.repeat(MAX_QUANTIZEJOB_NAME)));
  // A pod's name is a DNS subdomain.
  assert(pod.metadata.name.length <= 253);
  assert.equal(pod.spec.hostname, undefined);
});

test('the ConfigMap of a FaceTrainJob of the same name is not taken for an own one of another spec', () => {
  const foreign = { kind: 'ConfigMap' as const, uid: 'f', owned: false, specDigest: 'of-other-fields' };
  for (const name of ['small-0', 'small-0-quantizer']) {
    const { status } = plan(makeQuantizeJob().observe({}, [], { objects: [{ ...foreign, name }] }));
    assert.equal(status.attempt, 0);
  }
});

describe('children that a former version of the operator named otherwise', () => {
  const config: ObservedObject = { kind: 'ConfigMap', name: 'small-0', uid: 'old', owned: true };
  const running = makePod(0, 0, 'small').running().build();
  test('a pod gets no second one beside it', () => {
    const { actions, status } = plan(makeQuantizeJob().observe(STARTED, [running], { objects: [config] }));
    assert.deepEqual(
      created(actions).map(({ kind }) => kind),
      ['ConfigMap'],
    );
    assert.equal(status.phase, 'Running');
  });
  test('a ConfigMap is deleted after its attempt', () => {
    const second = { ...STARTED, attempt: 1 };
    const objects = [config, { ...OBJECTS[0]!, name: 'small-1-quantizer' }];
    const { actions } = plan(makeQuantizeJob().observe(second, [pod(1).running().build()], { objects }));
    assert.deepEqual(
      actions.map((action) => action.type === 'delete' && action.uid),
      ['old'],
    );
  });
});

describe('the state of the pod decides the status', () => {
  const cases: Record<string, { pod: ObservedPod; want: object }> = {
    'ready: running': { pod: pod().running().build(), want: { phase: 'Running' } },
    'succeeded, with the artifact in its termination message': {
      pod: pod()
        .succeeded()
        .with({ result: { artifact: { bytes: 7, meanCosine: 0.99, gate: 'Passed' } } })
        .build(),
      want: {
        phase: 'Succeeded',
        completionTime: at(100),
        artifact: { uri: 'pvc://data/int7', bytes: 7, meanCosine: 0.99, gate: 'Passed' },
      },
    },
    'succeeded, with an unreadable termination message': {
      pod: pod().succeeded().build(),
      want: { phase: 'Succeeded', artifact: { uri: 'pvc://data/int7' } },
    },
    'gate missed: the job fails': {
      pod: pod().failed(3).build(),
      want: { phase: 'Failed', attempt: 0, conditions: [{ type: 'Ready' }, { type: 'Stalled', reason: 'GateFailed' }] },
    },
    'wrong credentials: the job fails with the message of the program': {
      pod: pod().failed(2).terminationMessage('StorageFailed', 's3://models: access denied').build(),
      want: {
        phase: 'Failed',
        conditions: [
          {
            type: 'Ready',
            status: 'False',
            reason: 'StorageFailed',
            message: 'rank 0 left with exit code 2: s3://models: access denied',
          },
        ],
      },
    },
    'crashed: a restart': {
      pod: pod().failed(1).build(),
      want: { phase: 'Restarting', attempt: 1, restarts: { count: 1, lastExitCode: 1 } },
    },
    'evicted for its node: a restart that does not count': {
      pod: pod().with({ phase: 'Failed', reason: 'Evicted' }).disrupted().build(),
      want: { phase: 'Restarting', attempt: 1, restarts: { count: 0, disruptions: 1 } },
    },
    'evicted over its own limit: a restart that counts': {
      pod: pod().with({ phase: 'Failed', reason: 'Evicted' }).build(),
      want: { phase: 'Restarting', attempt: 1, restarts: { count: 1, disruptions: 0 } },
    },
  };
  for (const [name, { pod, want }] of Object.entries(cases)) {
    test(name, () => {
      const { status, actions } = plan(makeQuantizeJob().observe(STARTED, [pod], { objects: OBJECTS }));
      assert.partialDeepStrictEqual(status, want);
      assert.deepEqual(actions, []);
    });
  }
});

test('the artifact stays in the status after its pod is deleted', () => {
  const job = makeQuantizeJob();
  const done = pod()
    .succeeded()
    .with({ result: { artifact: { bytes: 1 } } })
    .build();
  const { status } = plan(job.observe(STARTED, [done], { objects: OBJECTS }));
  assert.equal(plan(job.observe(status, [], { objects: OBJECTS }), 200).status, status);
});

test('a suspended job has no pod, and resuming starts a new attempt', () => {
  const suspended = plan(
    makeQuantizeJob().suspended().atGeneration(2).observe(STARTED, [pod().running().build()], { objects: OBJECTS }),
  );
  assert.deepEqual({ attempt: suspended.status.attempt, actions: suspended.actions }, { attempt: 1, actions: [] });
  const stopping = plan(
    makeQuantizeJob()
      .suspended()
      .atGeneration(2)
      .observe(suspended.status, [pod().running().build()], { objects: OBJECTS }),
  );
  assert.deepEqual(
    stopping.actions.map(({ type }) => type),
    ['delete'],
  );
  const resumed = plan(makeQuantizeJob().atGeneration(3).observe(stopping.status, [], { objects: OBJECTS }));
  assert.deepEqual(
    created(resumed.actions).map(({ metadata }) => metadata.name),
    ['small-1-quantizer', 'small-1-quantizer'],
  );
});
