/** What a job on this machine gives to its processes. */
import assert from 'node:assert/strict';
import { closeSync, openSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { QuantizeConfig } from '@facetrain/api';
import { parsedJob } from '../testing/parsed-job.ts';
import { localEnvironment } from './local-environment.ts';
import { freePorts } from './ports.ts';
import { LocalFaceTrainJob } from './process-executor.ts';
import { quantizeJobUid } from './run-state.ts';

test('the report of an artifact says which attempt of which run has made it', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-executor-'));
  const lock = openSync(join(folder, 'lock'), 'a');
  const { spec } = parsedJob({ output: { uri: `file://${folder}/out` }, quantize: {} });
  const [rendezvous, progressPort] = (await freePorts(2)) as [number, number];
  const job = new LocalFaceTrainJob(
    { name: 'faces', namespace: 'default', uid: 'run', generation: 1 },
    spec,
    {
      environment: localEnvironment(folder, { rendezvous, progress: progressPort }),
      folder,
      progressPort,
      lock,
      listener: { onStatus: () => {}, onEvent: () => {} },
    },
    { attempt: 3, trained: true, recordAttempt: async () => {}, recordTrained: async () => {} },
  );
  try {
    // There is no model, so the quantizer ends at once.
    await job.run(new AbortController().signal);
    assert.equal(job.failure.exitCode, 2);
    const [pod] = job.quantizeJob!.pods.values();
    const config = pod!.pod.spec.volumes.flatMap((volume) => ('configMap' in volume ? [volume.configMap.name] : []));
    const file = join(folder, 'config', config[0]!, 'config.json');
    const { uid } = QuantizeConfig.parse(JSON.parse(await readFile(file, 'utf8'))).job;
    assert.equal(uid, quantizeJobUid({ uid: 'run', attempt: 3 }));
  } finally {
    job.running().forEach((pod) => pod.kill());
    closeSync(lock);
    await rm(folder, { recursive: true });
  }
});
