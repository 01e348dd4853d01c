import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { Cache } from '../runtime/cache.ts';
import { quotaRivals, waitedForQuota } from './quota-rivals.ts';
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

test('only the jobs that the same quota refuses are read', async () => {
  const job = jobObject('3', 'gpus');
  const all = [jobObject('1', 'gpus'), jobObject('2', 'cpus'), job, jobObject('4', 'gpus'), jobObject('5')];
  const items = [...all, jobObject('0', 'gpus', 'another')];
  const FaceTrainJob = new Cache<JobObject>({
    client: {
      list: async () => ({ metadata: { resourceVersion: '1' }, items: items as never[] }),
      async *watch() {},
    },
    resource: faceTrainJobs,
    namespace: null,
    indexes: { quota: waitedForQuota },
    log: pino({ level: 'silent' }),
  });
  const stop = new AbortController();
  const running = FaceTrainJob.run(stop.signal);
  await FaceTrainJob.synced;
  stop.abort();
  await running;
  FaceTrainJob.values = () => assert.fail('every job is read');
  assert.deepEqual(quotaRivals({ FaceTrainJob }, job, NOW), { ahead: ['FaceTrainJob 1'], behind: 1 });
  assert.equal(quotaRivals({ FaceTrainJob }, all[4]!, NOW), undefined);
});
