/** Installs Kueue: its CustomResourceDefinitions, webhooks and controllers. */
import { cp, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseAllDocuments, stringify } from 'yaml';
import { moduleFiles } from '../../hack/lib/paths.mjs';
import type { Cluster } from './cluster.ts';

const NAMESPACE = 'kueue-system';

interface Manifest {
  kind: string;
  webhooks?: { rules: { apiGroups: string[] }[] }[];
}

/** Creates all objects. Kueue is ready later: `kueueIsReady`. */
export async function installKueue(cluster: Cluster): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-kueue-'));
  try {
    await cp(join(import.meta.dirname, 'kueue'), folder, { recursive: true });
    await cp(moduleFiles('kueue'), join(folder, 'components'), { recursive: true });
    const rendered = await cluster.kubectl('kustomize', folder);
    const objects = parseAllDocuments(rendered).map((document) => document.toJS() as Manifest);
    const input = objects.map((object) => stringify(withoutPodWebhooks(object))).join('---\n');
    // By the server: the definitions are too long for the annotation that kubectl would write.
    await cluster.run('kubectl', ['apply', '--server-side', '-f', '-'], { input });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Kueue would be asked about each pod and Job of the cluster, and until it answers none could be created. */
const withoutPodWebhooks = (object: Manifest): Manifest =>
  object.webhooks === undefined
    ? object
    : {
        ...object,
        webhooks: object.webhooks.filter(({ rules }) =>
          rules.every(({ apiGroups }) => apiGroups.includes('kueue.x-k8s.io')),
        ),
      };

/** Waits until Kueue's pod is ready. On a busy node its probe may fail again, and its webhooks then have no address. */
export const kueueIsReady = (cluster: Cluster): Promise<string> =>
  cluster.kubectl('-n', NAMESPACE, 'rollout', 'status', 'deployment/kueue-controller-manager', '--timeout=600s');
