/** The trainers' image for GPUs, as far as it can be tested without one: it trains on the CPU as a pod would. */
import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { FaceTrainJob, parseDocument, TrainReport } from '@facetrain/api';
import { clusterEnvironment } from '@facetrain/operator/controllers/cluster-environment';
import { allStorage, trainerConfig, trainerStorage } from '@facetrain/planner/facetrainjob/make-trainer-config';
import { parse } from 'yaml';
import { command } from './cluster/command.ts';
import { buildCudaTrainerImage, CUDA_TRAINER_IMAGE } from './cluster/images.ts';
import { EXAMPLE } from './testing/example-job.ts';

const scratch = await mkdtemp(join(tmpdir(), 'facetrain-cuda-image-'));

after(async () => {
  // Later builds find its layers in the builder's cache. As an image without a name each build would stay.
  await command(['docker', 'image', 'rm', '--force', CUDA_TRAINER_IMAGE]).catch(() => {});
  await rm(scratch, { recursive: true });
});

/** One trainer and one epoch of the example. Its data and output are on the claims `faces` and `out`. */
async function exampleJob(): Promise<FaceTrainJob> {
  const job = parse(await readFile(join(EXAMPLE, 'job.yaml'), 'utf8'));
  const { quantize, ...spec } = job.spec;
  Object.assign(spec, {
    dataset: { uri: 'pvc://faces' },
    evaluation: { sets: [{ name: 'lfw-small', uri: 'pvc://faces/lfw-small.bin' }] },
    output: { uri: 'pvc://out' },
    epochs: 1,
    trainers: { replicas: 1, device: 'CPU' },
  });
  return parseDocument(FaceTrainJob, { ...job, spec }, 'the example', 'InvalidManifest');
}

test('the image for GPUs is built, and trains the example on the CPU', async (t) => {
  let lastStep = '';
  const size = await buildCudaTrainerImage((step) => (lastStep = step)).catch((error) =>
    assert.fail(`${lastStep}\n${(error as Error).message}`),
  );
  t.diagnostic(`${CUDA_TRAINER_IMAGE}: ${(size / 1e9).toFixed(2)} GB`);

  const claims: Record<string, string> = { faces: join(EXAMPLE, 'data'), out: join(scratch, 'out') };
  await mkdir(claims.out!);
  await chmod(claims.out!, 0o777); // The image's user is not root.
  await chmod(scratch, 0o755);
  const { metadata, spec } = await exampleJob();
  const environment = clusterEnvironment(CUDA_TRAINER_IMAGE);
  const storage = trainerStorage(spec, environment);
  const identity = { name: metadata.name, namespace: 'default', uid: 'uid', generation: 1 };
  const config = join(scratch, 'config.json');
  await writeFile(config, JSON.stringify(trainerConfig(identity, spec, 0, storage, environment)));

  const mounts = allStorage(storage).map(({ volume, mount }) => {
    assert(volume && mount && 'persistentVolumeClaim' in volume);
    return `${claims[volume.persistentVolumeClaim.claimName]}:${mount.mountPath}${mount.readOnly ? ':ro' : ''}`;
  });
  const volumes = [...new Set([...mounts, `${config}:/etc/facetrain/config.json:ro`])].flatMap((each) => ['-v', each]);
  const variables = ['-e', 'FACETRAIN_CONFIG=/etc/facetrain/config.json'];
  await command(['docker', 'run', '--rm', '--network=none', ...volumes, ...variables, CUDA_TRAINER_IMAGE, 'train']);

  const report = TrainReport.parse(JSON.parse(await readFile(join(claims.out!, 'train-report.json'), 'utf8')));
  assert.equal(report.steps, Math.floor(report.dataset.images / report.config.globalBatchSize));
  assert(Number.isFinite(report.lossLast));
  assert.equal(report.evaluations.length, 1);
  assert((await stat(join(claims.out!, 'model', 'backbone.onnx'))).size > 1e6);
});
