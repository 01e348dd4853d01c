/** Installs what the example needs in a cluster: the chart, an object store with its faces, a claim for checkpoints. */
import { chmod, mkdir, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { CreateBucketCommand, PutObjectCommand, S3Client } from '@aws-sdk/client-s3';
import { eventually } from '@facetrain/operator/testing/eventually';
import { exampleFaces, root } from '../../hack/lib/paths.mjs';
import { type Cluster, S3_NODE_PORT } from './cluster.ts';
import { OPERATOR_IMAGE, TRAINER_IMAGE } from './images.ts';

export const OPERATOR_NAMESPACE = 'facetrain-system';
const CHART = join(root, 'charts', 'facetrain');

/** The keys of the cluster's object store, as object-store.yaml and namespace.yaml have them. */
export const S3_KEYS = { AWS_ACCESS_KEY_ID: 'facetrain', AWS_SECRET_ACCESS_KEY: 'facetrain-secret' };

/** The URL by which this machine reaches the cluster's object store. */
export const s3Endpoint = (cluster: Cluster): string => `http://${cluster.address(S3_NODE_PORT)}`;

/** A client of the cluster's object store. */
export const s3 = (cluster: Cluster): S3Client =>
  new S3Client({
    endpoint: s3Endpoint(cluster),
    region: 'us-east-1',
    forcePathStyle: true,
    credentials: { accessKeyId: S3_KEYS.AWS_ACCESS_KEY_ID, secretAccessKey: S3_KEYS.AWS_SECRET_ACCESS_KEY },
  });

/**
 * Installs or upgrades the chart. Progress is asked for each second: what waits for a step does not wait for longer.
 * @param values in the form of Helm's `--set`
 */
export async function installChart(cluster: Cluster, ...values: string[]): Promise<void> {
  const sets = ['progressSeconds=1', ...values].flatMap((value) => ['--set', value]);
  await cluster.run('helm', [
    'upgrade',
    '--install',
    'facetrain',
    CHART,
    '--namespace',
    OPERATOR_NAMESPACE,
    '--create-namespace',
    '--wait',
    '--timeout',
    '2m',
    ...sets,
  ]);
}

/** The object store, with the example's faces in the bucket "faces" and an empty bucket "models". */
export async function installObjectStore(cluster: Cluster): Promise<void> {
  await cluster.kubectl('apply', '-f', join(import.meta.dirname, 'object-store.yaml'));
  await cluster.kubectl('--namespace', 'object-store', 'rollout', 'status', 'deployment/s3', '--timeout', '60s');
  const client = s3(cluster);
  try {
    for (const Bucket of ['faces', 'models']) await eventually(() => client.send(new CreateBucketCommand({ Bucket })));
    for (const name of await readdir(exampleFaces))
      await client.send(
        new PutObjectCommand({
          Bucket: 'faces',
          Key: `lfw-small/${name}`,
          Body: await readFile(join(exampleFaces, name)),
        }),
      );
  } finally {
    client.destroy();
  }
}

/** A namespace with the Secret and the claim that the example needs. */
export async function createNamespace(cluster: Cluster, name: string): Promise<void> {
  const folder = join(cluster.shared, 'volumes', name);
  await mkdir(folder, { recursive: true });
  await chmod(folder, 0o777);
  await cluster.kubectl('create', 'namespace', name);
  const manifest = await readFile(join(import.meta.dirname, 'namespace.yaml'), 'utf8');
  await cluster.run('kubectl', ['--namespace', name, 'apply', '-f', '-'], {
    input: manifest.replaceAll('NAMESPACE', name),
  });
}

/** The chart and the object store. @param onStep is called with the name of each step */
export async function installAll(cluster: Cluster, onStep: (step: string) => void): Promise<void> {
  onStep('loading images');
  await cluster.load([OPERATOR_IMAGE, TRAINER_IMAGE]);
  onStep('installing the chart');
  await Promise.all([installChart(cluster), installObjectStore(cluster)]);
}
