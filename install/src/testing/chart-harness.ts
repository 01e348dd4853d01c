/** Helpers for tests of the chart: renders, installs and removes it with the pinned Helm. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { KubernetesObject } from '@facetrain/operator/runtime/resource';
import type { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { parseAllDocuments } from 'yaml';
import { chart, helm } from '../helm.ts';

export type Manifest = KubernetesObject & { apiVersion: string; kind: string; [field: string]: any };

/** The documents of a YAML stream, without the empty ones. */
export const manifests = (yaml: string): Manifest[] =>
  parseAllDocuments(yaml).flatMap((document) => (document.toJS() as Manifest | null) ?? []);

/** Renders the chart with these values. @throws HelmError */
export async function render(values: object, namespace = 'default'): Promise<Manifest[]> {
  return withValues(values, async (file) =>
    manifests(await helm(['template', 'facetrain', chart, '--namespace', namespace, '--values', file])),
  );
}

/**
 * Installs or upgrades the release `facetrain`, without waiting for its pods: no kubelet starts them.
 *
 * @param flags additional flags of helm
 * @returns the notes (NOTES.txt)
 */
export async function upgrade(
  plane: ControlPlane,
  namespace: string,
  values: object,
  ...flags: string[]
): Promise<string> {
  const connection = ['--namespace', namespace, '--kubeconfig', await plane.kubeconfig()];
  return withValues(values, (file) =>
    helm(['upgrade', '--install', 'facetrain', chart, ...connection, '--create-namespace', '--values', file, ...flags]),
  );
}

export async function uninstall(plane: ControlPlane, namespace: string): Promise<string> {
  return helm(['uninstall', 'facetrain', '--namespace', namespace, '--kubeconfig', await plane.kubeconfig()]);
}

/** Calls `use` with a temporary file that has these values as JSON, which every YAML parser reads. */
export async function withValues<T>(values: object, use: (file: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-chart-'));
  try {
    const file = join(folder, 'values.json');
    await writeFile(file, JSON.stringify(values), { mode: 0o600 });
    return await use(file);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
