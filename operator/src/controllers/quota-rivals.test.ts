import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { Cache } from '../runtime/cache.ts';
import { othersWaitForQuota, quotaRivals, refusedIn, waitedForQuota } from './quota-rivals.ts';
import { faceTrainJobs, type JobObject } from './resources.ts';

const NOW = new Date('2026-01-01T01:00:00Z');

const jobObject = (name: string, quota?: string, namespace = 'n'): JobObject => ({
  metadata: { name, namespace, uid: name, resourceVersion: '1', creationTimestamp: `2026-01-01T00:00:0${name}Z` },
  spec: {},
  status: {
    conditions: [
      {
        type: 'Ready',
        status: 'False',
        reason: 'QuotaExceeded',
        message: '',
        lastTransitionTime: '2026-01-01T00:00:00Z',
      },
    ],
    ...(quota && { refusal: { quota, message: 'exceeded', releases: 0 } }),
  },
});

async function cacheOf(items: JobObject[]): Promise<Cache<JobObject>> {
  const cache = new Cache<JobObject>({
    client: {
      list: async () => ({ metadata: { resourceVersion: '1' }, items: items as never[] }),
      async *watch() {},
    },
    resource: faceTrainJobs,
    namespace: null,
    indexes: { quota: waitedForQuota, refusedIn },
    log: pino({ level: 'silent' }),
  });
  const stop = new AbortController();
  const running = cache.run(stop.signal);
  await cache.synced;
  stop.abort();
  await running;
  return cache;
}

test('whether a quota refuses another job of the namespace, of either kind', async () => {
  const job = jobObject('3', 'gpus');
  const waits = async (trainings: JobObject[], quantizations: JobObject[] = []) =>
    othersWaitForQuota(
      { FaceTrainJob: await cacheOf([job, ...trainings]), QuantizeJob: await cacheOf(quantizations) },
      job,
    );
  assert.equal(await waits([]), false);
  assert.equal(await waits([jobObject('1', 'gpus', 'another'), jobObject('5')]), false);
  assert.equal(await waits([jobObject('1', 'cpus')]), true);
  assert.equal(await waits([], [jobObject('1', 'cpus')]), true);
  const suspended = jobObject('1', 'cpus');
  assert.equal(await waits([{ ...suspended, spec: { suspend: true } }]), false);
});

test('only the jobs that the same quota refuses are read', async () => {
  const job = jobObject('3', 'gpus');
  const all = [jobObject('1', 'gpus'), jobObject('2', 'cpus'), job, jobObject('4', 'gpus'), jobObject('5')];
  const FaceTrainJob = await cacheOf([...all, jobObject('0', 'gpus', 'another')]);
  FaceTrainJob.values = () => assert.fail('every job is read');
  assert.deepEqual(quotaRivals({ FaceTrainJob }, job, NOW), { ahead: ['FaceTrainJob 1'], behind: 1 });
  assert.equal(quotaRivals({ FaceTrainJob }, all[4]!, NOW), undefined);
});
