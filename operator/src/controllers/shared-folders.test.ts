import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Annotation, type JobKind, Label } from '@facetrain/planner/names';
import fc from 'fast-check';
import { pino } from 'pino';
import { Cache, type Index } from '../runtime/cache.ts';
import type { Client, ListAnswer } from '../runtime/client.ts';
import type { KubernetesObject, Resource } from '../runtime/resource.ts';
import { faceTrainJobs, type JobObject, type PodObject, pods, quantizeJobs } from './resources.ts';
import { faceTrainJobPlaces, podPlaces, quantizeJobPlaces, SharedFolders } from './shared-folders.ts';

interface Wanted {
  kind?: JobKind;
  name: string;
  namespace?: string;
  output: string;
  checkpoints?: string;
  /** Second of its creation. */
  created?: number;
  /** Name of the FaceTrainJob that made it. */
  parent?: string;
  hasBegun?: boolean;
  isSuspended?: boolean;
  isFinished?: boolean;
  /** The job is not there any more. */
  isDeleted?: boolean;
  pod?: 'Running' | 'Failed';
}

const metadataOf = ({ name, namespace = 'n', created = 0 }: Wanted) => ({
  name,
  namespace,
  uid: `uid-${name}`,
  resourceVersion: '1',
  creationTimestamp: new Date(1000 * created).toISOString(),
});

const jobObject = (wanted: Wanted): JobObject => ({
  metadata: {
    ...metadataOf(wanted),
    ...(wanted.parent && {
      ownerReferences: [
        {
          apiVersion: 'facetrain.dev/v1alpha1',
          kind: 'FaceTrainJob',
          name: wanted.parent,
          uid: `uid-${wanted.parent}`,
          controller: true,
        },
      ],
    }),
  },
  spec: {
    output: { uri: wanted.output },
    ...(wanted.checkpoints && { checkpoint: { uri: wanted.checkpoints } }),
    suspend: wanted.isSuspended === true,
  },
  status: {
    ...(wanted.hasBegun && { startTime: '2026-01-01T00:00:00Z' }),
    ...(wanted.isFinished && { completionTime: '2026-01-01T00:00:00Z' }),
  },
});

function podObject(wanted: Wanted): PodObject {
  const { kind = 'FaceTrainJob', name, namespace = 'n' } = wanted;
  const places = (kind === 'FaceTrainJob' ? faceTrainJobPlaces : quantizeJobPlaces)
    .writes(jobObject(wanted))
    .map((place) => place.replace(`${namespace} `, ''));
  return {
    metadata: {
      ...metadataOf(wanted),
      name: `${name}-0-0`,
      labels: { [Label.jobKind]: kind, [Label.jobName]: name, [Label.jobUid]: `uid-${name}` },
      annotations: { [Annotation.writesTo]: JSON.stringify(places) },
    },
    spec: {},
    status: { phase: wanted.pod! },
  };
}

async function cacheOf<T extends KubernetesObject>(
  resource: Resource<T>,
  items: T[],
  indexes: Record<string, Index<T>>,
): Promise<Cache<T>> {
  const client = {
    list: async () => ({ metadata: { resourceVersion: '1' }, items }) as unknown as ListAnswer<KubernetesObject>,
    async *watch() {},
  } as unknown as Pick<Client, 'list' | 'watch'>;
  const cache = new Cache({ client, resource, namespace: null, indexes, log: pino({ level: 'silent' }) });
  const stop = new AbortController();
  const running = cache.run(stop.signal);
  await cache.synced;
  stop.abort();
  await running;
  return cache;
}

/** @returns what each job waits for, by the job's name */
async function waits(jobs: Wanted[], starting: string[] = []): Promise<Record<string, string[]>> {
  const existing = (kind: JobKind) =>
    jobs.filter((job) => !job.isDeleted && (job.kind ?? 'FaceTrainJob') === kind).map(jobObject);
  const folders = new SharedFolders({
    FaceTrainJob: await cacheOf(faceTrainJobs, existing('FaceTrainJob'), faceTrainJobPlaces),
    QuantizeJob: await cacheOf(quantizeJobs, existing('QuantizeJob'), quantizeJobPlaces),
    Pod: await cacheOf(pods, jobs.filter(({ pod }) => pod).map(podObject), {
      job: ({ metadata }) => metadata.labels?.[Label.jobUid],
      ...podPlaces,
    }),
  });
  for (const name of starting) folders.setStarting(`uid-${name}`, true);
  return Object.fromEntries(
    jobs
      .filter(({ isDeleted }) => !isDeleted)
      .map((job) => [job.name, folders.jobsBefore(job.kind ?? 'FaceTrainJob', jobObject(job))]),
  );
}

/** Two jobs, `old` and the later `new`: what `new` waits for. */
const cases: Record<string, { old: Partial<Wanted>; new: Partial<Wanted>; want: string[] }> = {
  'the same folder in another spelling': {
    old: { output: 'pvc://data/out' },
    new: { output: 'pvc://data//./out/' },
    want: ['FaceTrainJob old'],
  },
  "another namespace's claim of the same name": {
    old: { output: 'pvc://data/out', namespace: 'm' },
    new: { output: 'pvc://data/out' },
    want: [],
  },
  'the same path of the nodes, in another namespace': {
    old: { output: 'hostpath:///out', namespace: 'm' },
    new: { output: 'hostpath:////out' },
    want: ['FaceTrainJob m/old'],
  },
  'an output inside of the checkpoints of another': {
    old: { output: 'pvc://data/out' },
    new: { output: 'pvc://data/out/checkpoints/new' },
    want: ['FaceTrainJob old'],
  },
  'checkpoints in a folder that contains the output of another': {
    old: { output: 'pvc://data/out' },
    new: { output: 'pvc://data/new', checkpoints: 'pvc://data' },
    want: ['FaceTrainJob old'],
  },
  'an output below the output of another': {
    old: { output: 'pvc://data/out' },
    new: { output: 'pvc://data/out/new' },
    want: [],
  },
  'a folder whose name begins alike': {
    old: { output: 'pvc://data/out' },
    new: { output: 'pvc://data/out/checkpoints-of-mine' },
    want: [],
  },
  'an artifact in the checkpoints of a training': {
    old: { output: 'pvc://data/out' },
    new: { kind: 'QuantizeJob', output: 'pvc://data/out/checkpoints' },
    want: ['FaceTrainJob old'],
  },
  'two artifacts in one prefix of an object store': {
    old: { kind: 'QuantizeJob', output: 's3://models/a' },
    new: { kind: 'QuantizeJob', output: 's3://models/a/' },
    want: ['QuantizeJob old'],
  },
  'the checkpoints of a deleted job whose pod still runs': {
    old: { output: 'pvc://data/out', isDeleted: true, pod: 'Running' },
    new: { output: 'pvc://data/new', checkpoints: 'pvc://data/out/checkpoints/' },
    want: ['pod old-0-0 of the deleted FaceTrainJob old'],
  },
  'the same after that pod has ended': {
    old: { output: 'pvc://data/out', isDeleted: true, pod: 'Failed' },
    new: { output: 'pvc://data/out' },
    want: [],
  },
  'a job that is suspended': {
    old: { output: 'pvc://d/o', isSuspended: true },
    new: { output: 'pvc://d/o' },
    want: [],
  },
  'a finished job whose pod still runs': {
    old: { output: 'pvc://d/o', isFinished: true, pod: 'Running' },
    new: { output: 'pvc://d/o' },
    want: ['FaceTrainJob old'],
  },
  'an older job, by one that has begun and waits to restart': {
    old: { output: 'pvc://d/o' },
    new: { output: 'pvc://d/o', hasBegun: true },
    want: [],
  },
};
for (const [name, { old, new: later, want }] of Object.entries(cases))
  test(`waits for ${want.join() || 'nothing'}: ${name}`, async () => {
    const jobs = [
      { ...old, name: 'old' },
      { ...later, name: 'new', created: 1 },
    ] as Wanted[];
    assert.deepEqual((await waits(jobs)).new, want);
  });

test('a job that waits for a folder is told when a job or a pod gives it up, and at no other change', async () => {
  const old: Wanted = { name: 'old', output: 'pvc://d/o' };
  const orphan: Wanted = { name: 'gone', output: 'pvc://d/p', isDeleted: true, pod: 'Running' };
  const waiting = (name: string, output: string): JobObject => ({
    ...jobObject({ name, output, created: 1 }),
    status: {
      conditions: [{ type: 'Ready', status: 'False', reason: 'OutputInUse', message: '', lastTransitionTime: '' }],
    },
  });
  const jobs = [
    jobObject(old),
    waiting('later', 'pvc://d/o'),
    waiting('other', 'pvc://d/p'),
    jobObject({ name: 'idle', output: 'pvc://d/o' }),
  ];
  const caches = {
    FaceTrainJob: await cacheOf(faceTrainJobs, jobs, faceTrainJobPlaces),
    QuantizeJob: await cacheOf(quantizeJobs, [waiting('int7', 'pvc://d/o/checkpoints')], quantizeJobPlaces),
    Pod: await cacheOf(pods, [podObject(orphan)], { job: () => undefined, ...podPlaces }),
  };
  const told: string[] = [];
  new SharedFolders(caches).onRelease((kind, key) => told.push(`${kind} ${key}`));
  const change = <T extends KubernetesObject>(cache: Cache<T>, object: T, resourceVersion: string) =>
    cache.put({ ...object, metadata: { ...object.metadata, resourceVersion } });
  change(caches.FaceTrainJob, jobObject({ ...old, hasBegun: true }), '2');
  assert.deepEqual(told, []);
  change(caches.FaceTrainJob, jobObject({ ...old, isFinished: true }), '3');
  assert.deepEqual(told.splice(0), ['FaceTrainJob n/later', 'QuantizeJob n/int7']);
  change(caches.FaceTrainJob, jobObject({ ...old, isFinished: true, isSuspended: true }), '4');
  assert.deepEqual(told, []);
  change(caches.Pod, podObject({ ...orphan, pod: 'Failed' }), '2');
  assert.deepEqual(told, ['FaceTrainJob n/other']);
});

test('a job whose pods are being created is found before any of them is in the cache', async () => {
  const jobs = [
    { name: 'old', output: 'pvc://d/o' },
    { name: 'new', output: 'pvc://d/o', created: 1 },
  ];
  assert.deepEqual(await waits(jobs, ['new']), { old: ['FaceTrainJob new'], new: ['FaceTrainJob old'] });
});

test('a job waits neither for its QuantizeJob nor the other way round, and both come before a later job', async () => {
  const jobs: Wanted[] = [
    { name: 'first', output: 'pvc://d/o', hasBegun: true, created: 1 },
    { name: 'child', kind: 'QuantizeJob', parent: 'first', output: 'pvc://d/o', created: 2 },
    { name: 'older', output: 'pvc://d/o', created: 0 },
  ];
  const found = await waits(jobs);
  assert.deepEqual([found.first, found.child], [[], []]);
  assert.deepEqual(found.older, ['FaceTrainJob first', 'QuantizeJob child']);
});

test('annotations that the planner has not written hold nothing', () => {
  const pod = podObject({ name: 'a', output: 'pvc://d/o', pod: 'Running' });
  for (const text of [
    '',
    'null',
    '{"a":1}',
    '[1,null,{}]',
    '['.repeat(200_000),
    JSON.stringify(Array(100).fill('pvc://d')),
  ]) {
    pod.metadata.annotations = { [Annotation.writesTo]: text };
    assert.deepEqual([podPlaces.writes(pod), podPlaces.writesBelow(pod)], [[], []]);
  }
});

test('a pod whose annotation names a deep folder adds few entries to the index, and holds that folder', () => {
  const pod = podObject({ name: 'a', output: 'pvc://d/o', pod: 'Running' });
  const place = `pvc://d${'/x'.repeat(1000)}`;
  pod.metadata.annotations = { [Annotation.writesTo]: JSON.stringify([place]) };
  assert.deepEqual(podPlaces.writes(pod), [`n ${place}`]);
  const above = podPlaces.writesBelow(pod);
  assert.deepEqual([above.length, above[0]], [64, `n ${place.slice(0, -2)}`]);
});

test('no jobs ever wait for each other, and where none runs one may start', async () => {
  const uri = fc.constantFrom(
    'pvc://d',
    'pvc://d/a',
    'pvc://d//a/',
    'pvc://d/a/checkpoints',
    'pvc://d/b',
    'hostpath:///a',
  );
  const job = fc.record(
    {
      kind: fc.constantFrom<JobKind>('FaceTrainJob', 'QuantizeJob'),
      namespace: fc.constantFrom('n', 'm'),
      output: uri,
      checkpoints: uri,
      created: fc.nat(2),
      hasBegun: fc.boolean(),
      isSuspended: fc.boolean(),
    },
    { requiredKeys: ['output'] },
  );
  await fc.assert(
    fc.asyncProperty(fc.array(job, { maxLength: 7 }), fc.array(fc.nat(6), { maxLength: 3 }), async (specs, parents) => {
      const jobs = specs.map((spec, index): Wanted => ({ ...spec, name: `j${index}` }));
      for (const [index, parent] of parents.entries()) {
        const child = jobs[index];
        const owner = jobs[parent];
        if (
          child?.kind === 'QuantizeJob' &&
          owner &&
          owner.kind !== 'QuantizeJob' &&
          child.namespace === owner.namespace
        )
          child.parent = owner.name;
      }
      const waitsFor = await waits(jobs);
      const names = (text: string) => text.split(' ')[1]!.split('/').at(-1)!;
      const done = new Set<string>();
      for (let before = -1; done.size !== before; ) {
        before = done.size;
        for (const [name, others] of Object.entries(waitsFor))
          if (others.every((other) => done.has(names(other)))) done.add(name);
      }
      assert.equal(done.size, jobs.length, JSON.stringify(waitsFor));
    }),
    { numRuns: 60 },
  );
});
