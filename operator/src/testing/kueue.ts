/**
 * The real Kueue beside a control plane: its CRDs, and its controllers and scheduler as a process, by the program that
 * `npm run setup -- --test` builds. The API server does not call its webhooks, as it finds no Service in these tests.
 */
import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rename, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { parse } from 'yaml';
import { freePorts } from '../../../hack/lib/free-ports.mjs';
import { moduleFiles } from '../../../hack/lib/paths.mjs';
import { defineResource, type KubernetesObject } from '../runtime/resource.ts';
import type { ControlPlane } from './control-plane.ts';
import { eventually } from './eventually.ts';

const API = 'kueue.x-k8s.io/v1beta2';
const NAMESPACE = 'kueue-system';
/** Names that Kueue's configuration has by default. */
const SECRET = 'kueue-webhook-server-cert';
const secrets = defineResource<KubernetesObject & { data?: Record<string, string> }>('v1', 'secrets');

/** Creates Kueue's CRDs, and waits until all are served: Kueue ends when it finds one missing. */
export async function installKueueCrds({ client }: ControlPlane): Promise<void> {
  const folder = join(moduleFiles('kueue'), 'crd');
  const patches = await readdir(join(folder, 'patches'));
  const plurals: string[] = [];
  for (const file of await readdir(join(folder, 'bases'))) {
    const definition = parse(await readFile(join(folder, 'bases', file), 'utf8')) as {
      spec: { names: { plural: string }; conversion?: unknown };
    };
    // Kueue starts only when it can write its certificate into the conversions. No object here needs one.
    const patch = `webhook_in_${definition.spec.names.plural}.yaml`;
    if (patches.includes(patch)) {
      const { spec } = parse(await readFile(join(folder, 'patches', patch), 'utf8')) as {
        spec: { conversion: unknown };
      };
      definition.spec.conversion = spec.conversion;
    }
    await client.post('/apis/apiextensions.k8s.io/v1/customresourcedefinitions', definition);
    plurals.push(definition.spec.names.plural);
  }
  await eventually(async () => {
    const { resources } = await client.raw<{ resources: { name: string }[] }>(`/apis/${API}`);
    const served = resources.map(({ name }) => name);
    assert.deepEqual(
      plurals.filter((plural) => !served.includes(plural)),
      [],
    );
  });
}

/**
 * Installs and starts Kueue; it ends with the control plane.
 *
 * @param configuration fields of its Configuration, such as waitForPodsReady
 * @returns the address of its probes, which Kueue's Deployment has
 */
export async function startKueue(plane: ControlPlane, configuration: object = {}): Promise<string> {
  const { client } = plane;
  await installKueueCrds(plane);
  await plane.createNamespace(NAMESPACE);
  await client.create(secrets, NAMESPACE, { apiVersion: 'v1', kind: 'Secret', metadata: { name: SECRET } });
  for (const type of ['Mutating', 'Validating'])
    await client.post(`/apis/admissionregistration.k8s.io/v1/${type.toLowerCase()}webhookconfigurations`, {
      apiVersion: 'admissionregistration.k8s.io/v1',
      kind: `${type}WebhookConfiguration`,
      metadata: { name: `kueue-${type.toLowerCase()}-webhook-configuration` },
      webhooks: [],
    });
  const kubeconfig = await plane.kubeconfig();
  // Beside the kubeconfig: `stop` of the control plane removes it.
  const folder = await mkdtemp(join(dirname(kubeconfig), 'kueue-'));
  const [health, webhook] = await freePorts(2);
  const file = join(folder, 'config.yaml');
  await writeFile(
    file,
    JSON.stringify({
      apiVersion: 'config.kueue.x-k8s.io/v1beta2',
      kind: 'Configuration',
      namespace: NAMESPACE,
      health: { healthProbeBindAddress: `127.0.0.1:${health}` },
      metrics: { bindAddress: '0' },
      webhook: { port: webhook, host: '127.0.0.1', certDir: folder },
      leaderElection: { leaderElect: false },
      integrations: { frameworks: ['batch/job'] },
      ...configuration,
    }),
  );
  // Its visibility server would need permissions in kube-system.
  const args = ['--config', file, '--kubeconfig', kubeconfig, '--feature-gates=VisibilityOnDemand=false'];
  const child = plane.run('kueue', args);
  let mounted: string | undefined;
  await eventually(async () => {
    // The kubelet would mount the certificate that Kueue writes into this Secret: at once, and not again while Kueue
    // reads it.
    const { data = {} } = await client.get(secrets, NAMESPACE, SECRET);
    if (JSON.stringify(data) !== mounted) await mount(data, folder);
    mounted = JSON.stringify(data);
    assert.equal(child.exitCode, null, 'kueue has ended');
    assert.equal((await fetch(`http://127.0.0.1:${health}/readyz`)).status, 200);
  });
  return `http://127.0.0.1:${health}`;
}

/** Files with the content of a Secret, each written at once, the certificate last: Kueue waits for that. */
async function mount(data: Record<string, string>, folder: string): Promise<void> {
  const last = 'tls.crt';
  for (const name of [...Object.keys(data).filter((each) => each !== last), ...(last in data ? [last] : [])]) {
    const file = join(folder, name);
    await writeFile(`${file}.new`, Buffer.from(data[name]!, 'base64'));
    await rename(`${file}.new`, file);
  }
}

/** Kinds of Kueue's that have no namespace. */
type ClusterScoped =
  | 'ResourceFlavor'
  | 'ClusterQueue'
  | 'WorkloadPriorityClass'
  | 'Topology'
  | 'AdmissionCheck'
  | 'MultiKueueConfig'
  | 'MultiKueueCluster';

/** Lets the Kueue of one cluster reach another: a MultiKueueCluster, whose kubeconfig is in a Secret. */
export async function connectWorker(manager: ControlPlane, worker: ControlPlane, name: string): Promise<void> {
  const kubeconfig = await readFile(await worker.kubeconfig());
  await manager.client.create(secrets, NAMESPACE, {
    apiVersion: 'v1',
    kind: 'Secret',
    metadata: { name },
    data: { kubeconfig: kubeconfig.toString('base64') },
  });
  await createKueueObject(manager, 'MultiKueueCluster', name, {
    spec: { clusterSource: { kubeConfig: { location: name, locationType: 'Secret' } } },
  });
}

/** Creates an object of Kueue's that has no namespace. */
export const createKueueObject = (
  { client }: ControlPlane,
  kind: ClusterScoped,
  name: string,
  fields: object,
): Promise<unknown> => {
  const plural = `${kind.toLowerCase().replace(/ss$/, 'sse').replace(/y$/, 'ie')}s`;
  return client.post(`/apis/${API}/${plural}`, { apiVersion: API, kind, metadata: { name }, ...fields });
};

/** Creates a LocalQueue. */
export const createLocalQueue = (
  { client }: ControlPlane,
  namespace: string,
  name: string,
  clusterQueue: string,
): Promise<unknown> =>
  client.post(`/apis/${API}/namespaces/${namespace}/localqueues`, {
    apiVersion: API,
    kind: 'LocalQueue',
    metadata: { name },
    spec: { clusterQueue },
  });
