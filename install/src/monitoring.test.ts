/** What the chart brings for Prometheus, Grafana and kube-state-metrics: read by Prometheus' own parser. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { FaceTrainPhase } from '@facetrain/api';
import { Metrics } from '@facetrain/operator/runtime/metrics';
import { createBoard } from '@facetrain/trainer/program/progress-board';
import { createMetrics } from '@facetrain/trainer/program/progress-metrics';
import { parse } from 'yaml';
import { root, tools } from '../../hack/lib/paths.mjs';
import { chart } from './helm.ts';
import { render } from './testing/chart-harness.ts';

const file = (name: string) => join(chart, 'files', name);

interface Dashboard {
  panels: { id: number; targets?: { expr: string }[] }[];
}
const readDashboard = async () => JSON.parse(await readFile(file('dashboard.json'), 'utf8')) as Dashboard;

/** Names of the metrics that operator and trainers serve; of a histogram those of its series. */
async function servedMetrics(): Promise<string[]> {
  const board = createBoard({ name: 'faces', uid: 'u', attempt: 0 }, 'Training');
  const registries = [new Metrics().registry, createMetrics(board)];
  const all = (await Promise.all(registries.map((registry) => registry.getMetricsAsJSON()))).flat();
  return all.flatMap(({ name, type }) =>
    String(type) === 'histogram' ? ['_bucket', '_count', '_sum'].map((part) => `${name}${part}`) : [name],
  );
}

test('Prometheus reads the alerts and the dashboard’s expressions, and each metric in them is served', async () => {
  const { panels } = await readDashboard();
  const expressions = panels.flatMap(({ targets = [] }) =>
    // As Grafana replaces its variable.
    targets.map(({ expr }) => expr.replaceAll('$__rate_interval', '1m')),
  );
  assert(expressions.length > 10);
  const input = JSON.stringify(expressions);
  const { stdout, stderr } = spawnSync(join(tools, 'rulecheck'), [file('alerts.yaml')], { input, encoding: 'utf8' });
  assert.equal(stderr, '');
  const { errors, metrics } = JSON.parse(stdout) as { errors: string[]; metrics: string[] };
  assert.deepEqual(errors, []);
  const served = new Set(await servedMetrics());
  assert.deepEqual(
    metrics.filter((name) => !served.has(name)),
    [],
  );
  assert.equal(new Set(panels.map(({ id }) => id)).size, panels.length);
});

test('rules and dashboard are in the chart, disabled by default', async () => {
  const kinds = (objects: { kind: string }[]) => objects.map(({ kind }) => kind);
  const without = kinds(await render({}));
  assert(!without.includes('PrometheusRule') && !without.includes('ConfigMap'));
  const objects = await render({
    metrics: {
      serviceMonitor: { enabled: true },
      prometheusRule: { enabled: true, labels: { release: 'prometheus' } },
      dashboard: { enabled: true, annotations: { folder: 'ml' } },
    },
  });
  const rule = objects.find(({ kind }) => kind === 'PrometheusRule')!;
  assert.equal(rule.metadata.labels!.release, 'prometheus');
  assert.deepEqual(rule.spec, parse(await readFile(file('alerts.yaml'), 'utf8')));
  const dashboard = objects.find(({ kind }) => kind === 'ConfigMap')!;
  assert.equal(dashboard.metadata.labels!.grafana_dashboard, '1');
  assert.equal(dashboard.metadata.annotations!.folder, 'ml');
  assert.deepEqual(JSON.parse(dashboard.data['facetrain.json']), await readDashboard());
});

test('the configuration of kube-state-metrics reads fields that the status has, and knows all phases', async () => {
  interface Each {
    stateSet?: { path: string[]; list: string[] };
    gauge?: { path: string[] };
  }
  const config = parse(await readFile(file('kube-state-metrics.yaml'), 'utf8')) as {
    spec: { resources: { metrics: { name: string; each: Each }[] }[] };
  };
  const definition = parse(await readFile(join(root, 'crds', 'facetrain.dev_facetrainjobs.yaml'), 'utf8')) as {
    spec: { versions: { schema: { openAPIV3Schema: Schema } }[] };
  };
  interface Schema {
    properties?: Record<string, Schema>;
  }
  const schema = definition.spec.versions[0]!.schema.openAPIV3Schema;
  const { metrics } = config.spec.resources[0]!;
  for (const { name, each } of metrics) {
    const { path } = (each.stateSet ?? each.gauge)!;
    const field = path.reduce<Schema | undefined>((at, key) => at?.properties?.[key], schema);
    assert(field, `${name}: no field ${path.join('.')}`);
  }
  const phase = metrics.find(({ name }) => name === 'phase')!;
  assert.deepEqual(phase.each.stateSet!.list, FaceTrainPhase.options);
});
