/**
 * Every manifest of examples/, checked as its reader would use it: by `facetrain validate`, by a dry run on the API
 * server, and by the operator, which makes pods of it. A new folder is tested without being named here.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import type { FaceTrainJob } from '@facetrain/api';
import { faceTrainJobs, type JobObject, pods, quantizeJobs } from '@facetrain/operator/controllers/resources';
import { ApiError } from '@facetrain/operator/runtime/api-error';
import { collectionPath, type Resource } from '@facetrain/operator/runtime/resource';
import { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { eventually } from '@facetrain/operator/testing/eventually';
import { TestNamespace } from '@facetrain/operator/testing/operator-harness';
import { root, tools } from '../../hack/lib/paths.mjs';
import { type Manifest, manifests } from './testing/chart-harness.ts';

const execute = promisify(execFile);
const EXAMPLES = join(root, 'examples');
const FACETRAIN = join(root, 'cli', 'src', 'main.ts');
const RESOURCES: Record<string, Resource<JobObject>> = { FaceTrainJob: faceTrainJobs, QuantizeJob: quantizeJobs };

const folders = readdirSync(EXAMPLES, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => join(EXAMPLES, name));
const isKustomized = (folder: string) => existsSync(join(folder, 'kustomization.yaml'));
const manifestFiles = (folder: string) =>
  readdirSync(folder)
    .filter((name) => /\.(ya?ml|json)$/.test(name) && name !== 'kustomization.yaml')
    .map((name) => join(folder, name));

let plane: ControlPlane;
let scratch: string;
before(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'facetrain-examples-'));
  // PodGroups, for examples with gang.mode: Native.
  plane = await ControlPlane.start(['--feature-gates=GenericWorkload=true', '--runtime-config=api/all=true']);
  await plane.installCrds();
});
after(async () => {
  await plane?.stop();
  await rm(scratch, { recursive: true, force: true });
});

/** The files that `kubectl apply` sends for a folder: its manifests, or what its kustomization makes of them. */
async function filesForCluster(folder: string): Promise<string[]> {
  if (!isKustomized(folder)) return manifestFiles(folder);
  const { stdout } = await execute(join(tools, 'kubectl'), ['kustomize', folder]);
  const file = join(scratch, `${relative(EXAMPLES, folder)}.yaml`);
  await writeFile(file, stdout);
  return [file];
}

const read = async (file: string): Promise<Manifest[]> => manifests(await readFile(file, 'utf8'));

async function assertValid(file: string): Promise<void> {
  const { stdout } = await execute(process.execPath, [FACETRAIN, 'validate', '-f', file]);
  assert.match(stdout, / is valid\n$/);
}

function dryRun(manifest: Manifest): Promise<unknown> {
  const resource = RESOURCES[manifest.kind];
  assert(resource, `${manifest.kind} is not a kind of Facetrain`);
  return plane.client.post(`${collectionPath(resource, 'default')}?dryRun=All&fieldValidation=Strict`, manifest);
}

/** Lets the operator make a job's pods, train, and quantize. The API server checks podTemplate only in the pods. */
async function runWithOperator(ns: TestNamespace, manifest: Manifest): Promise<void> {
  const { name } = manifest.metadata;
  const resource = RESOURCES[manifest.kind]!;
  // Here is no Kueue to admit a job: without its queue the pods are made, too.
  const { queue: _, ...spec } = manifest.spec as FaceTrainJob['spec'];
  await ns.create(resource, { ...manifest, spec });
  const { trainers, quantize } = manifest.spec as FaceTrainJob['spec'];
  const replicas = manifest.kind === 'QuantizeJob' ? 1 : (trainers?.replicas ?? 1);
  await hasPods(ns, name, replicas, resource);
  if (manifest.kind === 'QuantizeJob' || !quantize) return;
  await ns.setAllPodStatuses('Running');
  await ns.setAllPodStatuses('Succeeded');
  await eventually(async () => assert.deepEqual(await ns.names(quantizeJobs), [`${name}-quantize`]));
  await hasPods(ns, `${name}-quantize`, 1, quantizeJobs);
}

/** Waits for the pods of a job's first attempt. @throws with the job's conditions when they are not made */
async function hasPods(ns: TestNamespace, job: string, count: number, resource: Resource<JobObject>): Promise<void> {
  await eventually(async () => {
    const made = (await ns.names(pods)).filter((name) => name.startsWith(`${job}-0-`));
    const { status } = await ns.get(resource, job);
    assert.equal(made.length, count, JSON.stringify(status?.conditions, null, 2));
  });
}

for (const folder of folders) {
  const example = relative(EXAMPLES, folder);

  test(`${example}: holds a manifest and a README, which examples/README.md links to`, async () => {
    assert.notDeepEqual(manifestFiles(folder), []);
    assert(existsSync(join(folder, 'README.md')));
    assert((await readFile(join(EXAMPLES, 'README.md'), 'utf8')).includes(`(${example}/)`));
  });

  test(`${example}: facetrain validate accepts every manifest`, async () => {
    for (const file of [...manifestFiles(folder), ...(await filesForCluster(folder))]) await assertValid(file);
  });

  test(`${example}: the API server accepts every manifest`, async () => {
    for (const file of [...manifestFiles(folder), ...(await filesForCluster(folder))])
      for (const manifest of await read(file)) await dryRun(manifest);
  });

  test(`${example}: the operator makes its pods`, async (t) => {
    const ns = await TestNamespace.open(t, plane, example);
    for (const file of await filesForCluster(folder))
      for (const manifest of await read(file)) await runWithOperator(ns, manifest);
  });
}

test('the dry run refuses a field that does not exist', async () => {
  const [manifest] = await read(join(EXAMPLES, 'lfw-small', 'job.yaml'));
  await assert.rejects(dryRun({ ...manifest!, spec: { ...manifest!.spec, epoch: 3 } }), (error) => {
    assert(error instanceof ApiError);
    assert.match(error.serverMessage, /unknown field "spec\.epoch"/);
    return true;
  });
});
