/**
 * What the chart brings for Prometheus, Grafana and kube-state-metrics: read by Prometheus' own parser, and alerts
 * evaluated by its own engine.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { FaceTrainPhase, QuantizePhase } from '@facetrain/api';
import { Metrics } from '@facetrain/operator/runtime/metrics';
import { type Plan, type Pod, planFaceTrainJob, planQuantizeJob } from '@facetrain/planner';
import { makeJob, makeQuantizeJob, START } from '@facetrain/planner/testing/builders';
import { testEnvironment } from '@facetrain/planner/testing/test-environment';
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

interface JobState {
  groupVersionKind: { kind: string };
  metricNamePrefix: string;
  metrics: { name: string; each: { stateSet?: { path: string[]; list: string[] }; gauge?: { path: string[] } } }[];
}
const readJobStates = async () =>
  (parse(await readFile(file('kube-state-metrics.yaml'), 'utf8')) as { spec: { resources: JobState[] } }).spec
    .resources;

/**
 * Names of the metrics that operator, trainers and kube-state-metrics serve; of a histogram those of its series.
 */
async function servedMetrics(): Promise<string[]> {
  const board = createBoard({ name: 'faces', uid: 'u', attempt: 0 }, 'Training');
  const registries = [new Metrics().registry, createMetrics(board)];
  const all = (await Promise.all(registries.map((registry) => registry.getMetricsAsJSON()))).flat();
  const own = all.flatMap(({ name, type }) =>
    String(type) === 'histogram' ? ['_bucket', '_count', '_sum'].map((part) => `${name}${part}`) : [name],
  );
  const states = (await readJobStates()).flatMap(({ metricNamePrefix, metrics }) =>
    metrics.map(({ name }) => `${metricNamePrefix}_${name}`),
  );
  return [...own, ...states];
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

/** An alert that fires, as rulecheck prints it. */
interface Alert {
  name: string;
  labels: Record<string, string>;
  summary: string;
  from: number;
  to: number;
}

/**
 * Series as promtool's unit tests write them, with a sample each minute: "0+2x5" is 0 2 4 6 8 10, "_" none. Time begins
 * at 0, so `time()` is the number of seconds since then.
 */
interface Scraped {
  series: string[];
  minutes: number;
}

function fired(evaluations: Scraped[]): Alert[][] {
  const { stdout, stderr } = spawnSync(join(tools, 'rulecheck'), [file('alerts.yaml'), 'evaluate'], {
    input: JSON.stringify(evaluations),
    encoding: 'utf8',
  });
  assert.equal(stderr, '');
  return JSON.parse(stdout) as Alert[][];
}

const LEADER = 'leader_election_master_status{name="facetrain-operator",pod="a"}';
/** Something leads, so that this alert is quiet. */
const LED = `${LEADER} 1x2000`;
const errors = (controller: string) => `controller_runtime_reconcile_errors_total{controller="${controller}",pod="a"}`;
const waited = (stage: string, pod = 'a') => `facetrain_step_stage_seconds_total{stage="${stage}",pod="${pod}"}`;
const trainer = (pod: string, start: number, minutes: number) => [
  `process_start_time_seconds{pod="${pod}"} ${start}x${minutes}`,
  `facetrain_planned_steps{pod="${pod}"} 1000x${minutes}`,
  `facetrain_learning_rate{pod="${pod}"} 0.1x${minutes}`,
];

type JobPrefix = 'job' | 'quantizejob';
const KINDS = { job: 'FaceTrainJob', quantizejob: 'QuantizeJob' };
/** Labels that kube-state-metrics gives a series. */
const labelsOf = (kind: JobPrefix) => `customresource_kind="${KINDS[kind]}",namespace="ml",name="faces"`;
const phaseOf = (kind: JobPrefix, phase: string) => `facetrain_${kind}_phase{${labelsOf(kind)},phase="${phase}"}`;
const restartsOf = (kind: JobPrefix, name: string) => `facetrain_${kind}_${name}{${labelsOf(kind)}}`;

/** What is scraped; and which alerts fire, from which minute to which, with parts of their summary. */
const ALERTS: Record<string, Scraped & { want: [string, number, number, RegExp?][] }> = {
  'no operator has ever led': {
    series: [],
    minutes: 5,
    want: [['FacetrainHasNoLeader', 2, 5, /^No replica of Facetrain's operator leads\.$/]],
  },
  'the leader is gone, and nobody follows until minute 20': {
    series: [`${LEADER} 1x5 0x20`, 'leader_election_master_status{name="facetrain-operator",pod="b"} 0x19 1x10'],
    minutes: 25,
    want: [['FacetrainHasNoLeader', 8, 19]],
  },
  'another replica leads a minute later': {
    series: [`${LEADER} 1x5 0x20`, 'leader_election_master_status{name="facetrain-operator",pod="b"} 0x6 1x20'],
    minutes: 25,
    want: [],
  },
  'the leader of another program is none': {
    series: ['leader_election_master_status{name="other"} 1x10'],
    minutes: 5,
    want: [['FacetrainHasNoLeader', 2, 5]],
  },
  'one job whose reconciles always fail, every 30 s': {
    series: [LED, `${errors('facetrainjob')} 0+2x60`, `${errors('quantizejob')} 0x60`],
    minutes: 60,
    want: [['FacetrainReconcilesFail', 22, 60, /^Reconciles of facetrainjob fail\.$/]],
  },
  'a conflict now and then, and errors of a foreign controller': {
    series: [LED, `${errors('facetrainjob')} 0+1x60`, `${errors('deployment')} 0+50x60`],
    minutes: 60,
    want: [],
  },
  'a queue that does not become shorter': {
    series: [LED, 'workqueue_depth{name="facetrainjob",pod="a"} 0 150x30 0x10'],
    minutes: 40,
    want: [['FacetrainQueueGrows', 11, 31, /^150 jobs wait/]],
  },
  'a thousand jobs at once, done in five minutes': {
    series: [LED, 'workqueue_depth{name="facetrainjob",pod="a"} 0 1000 800 600 400 200 0x30'],
    minutes: 30,
    want: [],
  },
  'a kind that cannot be watched, of several': {
    series: [
      LED,
      'facetrain_watch_restarts_total{resource="workloads"} 0+2x60',
      'facetrain_watch_restarts_total{resource="pods"} 0x60',
    ],
    minutes: 60,
    want: [['FacetrainWatchFails', 26, 60, /^The operator cannot watch workloads\.$/]],
  },
  'an API server that restarts once': {
    series: [LED, 'facetrain_watch_restarts_total{resource="pods"} 0x10 8 16 20x60'],
    minutes: 60,
    want: [],
  },
  'a training that hangs for half an hour, and is restarted': {
    series: [LED, 'facetrain_idle_seconds{pod="a"} 1x10 60+60x30 2x20'],
    minutes: 60,
    want: [['FacetrainTrainingStandsStill', 31, 41, /^A training or quantization has not moved for 31m 0s\.$/]],
  },
  'a long evaluation that moves': {
    series: [LED, 'facetrain_idle_seconds{pod="a"} 0+60x15 0+60x15 0x10'],
    minutes: 40,
    want: [],
  },
  'a training that waits for pictures two fifths of its time, and one that does not': {
    series: [
      LED,
      `${waited('data')} 0+24x90`,
      `${waited('forward')} 0+36x90`,
      `${waited('data', 'b')} 0+6x90`,
      `${waited('forward', 'b')} 0+54x90`,
    ],
    minutes: 90,
    want: [['FacetrainTrainingWaitsForPictures', 31, 90, /^40% of a training's steps is waiting for pictures\.$/]],
  },
  'the first pictures after a start': {
    series: [LED, `${waited('data')} 0+60x10 600+1x60`, `${waited('forward')} 0x10 0+59x60`],
    minutes: 70,
    want: [],
  },
  'no checkpoint for more than six hours of a training': {
    series: [LED, ...trainer('a', 0, 500)],
    minutes: 400,
    want: [['FacetrainCheckpointIsOld', 371, 400, /^A training has written no checkpoint for 6h 40m 0s\.$/]],
  },
  'checkpoints that stop after two hours': {
    series: [LED, ...trainer('a', 0, 700), 'facetrain_checkpoint_timestamp_seconds{pod="a"} _x60 3600x59 7200x700'],
    minutes: 600,
    want: [['FacetrainCheckpointIsOld', 491, 600]],
  },
  'an attempt that has loaded an old checkpoint an hour ago': {
    series: [
      LED,
      ...trainer('a', 36_000, 700).map((series) => series.replace('} ', '} _x600 ')),
      'facetrain_checkpoint_timestamp_seconds{pod="a"} _x600 60x100',
    ],
    minutes: 660,
    want: [],
  },
  'a quantization and a training that failed, and one that succeeded': {
    series: [
      LED,
      ...['Failed', 'Succeeded'].map((phase) => `${phaseOf('job', phase)} 1x10`),
      `${phaseOf('job', 'Running')} 0x10`,
      `${phaseOf('quantizejob', 'Failed')} 0x4 1x6`,
    ],
    minutes: 10,
    want: [
      ['FacetrainJobFailed', 0, 10, /^FaceTrainJob ml\/faces failed\.$/],
      ['FacetrainJobFailed', 5, 10, /^QuantizeJob ml\/faces failed\.$/],
    ],
  },
  'a job that waits, and one that starts after half an hour': {
    series: [LED, `${phaseOf('job', 'Pending')} 1x90`, `${phaseOf('quantizejob', 'Pending')} 1x30 0x60`],
    minutes: 90,
    want: [['FacetrainJobDoesNotStart', 60, 90, /^FaceTrainJob ml\/faces has been waiting for an hour\.$/]],
  },
  'four restarts within 40 minutes, and three': {
    series: [
      LED,
      `${restartsOf('job', 'restarts')} 1x4 2x9 3x9 4x90`,
      `${restartsOf('job', 'disruptions')} 0x34 1x9 2x90`,
      `${restartsOf('quantizejob', 'restarts')} 1x4 2x9 3x90`,
      `${restartsOf('quantizejob', 'disruptions')} 0x90`,
    ],
    minutes: 90,
    want: [['FacetrainJobRestartsOften', 35, 73, /^FaceTrainJob ml\/faces has restarted more than three times/]],
  },
  'a long quantization, and an operator, which write no checkpoints': {
    series: [
      LED,
      'process_start_time_seconds{pod="quantizer"} 0x800',
      'facetrain_planned_steps{pod="quantizer"} 100x800',
      'process_start_time_seconds{pod="operator"} 0x800',
    ],
    minutes: 700,
    want: [],
  },
};

test('each alert fires when it should, and at no other time', async () => {
  const cases = Object.entries(ALERTS);
  const results = fired(cases.map(([, { series, minutes }]) => ({ series, minutes })));
  const found = cases.map(([name], index) => [name, results[index]!.map(({ name, from, to }) => [name, from, to])]);
  const wanted = cases.map(([name, { want }]) => [name, want.map(([alert, from, to]) => [alert, from, to])]);
  assert.deepEqual(Object.fromEntries(found), Object.fromEntries(wanted));
  for (const [index, [name, { want }]] of cases.entries()) {
    const alerts = results[index]!;
    for (const [position, [, , , summary = /^[^<>{}]+$/]] of want.entries()) {
      assert.match(alerts[position]!.summary, summary, name);
      assert.match(alerts[position]!.labels.severity!, /^(critical|warning|info)$/);
    }
  }
  const { groups } = parse(await readFile(file('alerts.yaml'), 'utf8')) as {
    groups: { rules: { alert: string }[] }[];
  };
  const tried = new Set(cases.flatMap(([, { want }]) => want.map(([alert]) => alert)));
  assert.deepEqual([...tried].sort(), groups.flatMap(({ rules }) => rules.map(({ alert }) => alert)).sort());
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
  interface Schema {
    properties?: Record<string, Schema>;
  }
  const phases = { FaceTrainJob: FaceTrainPhase.options, QuantizeJob: QuantizePhase.options };
  const resources = await readJobStates();
  assert.deepEqual(
    resources.map(({ groupVersionKind: { kind } }) => kind),
    Object.keys(phases),
  );
  for (const [index, [kind, options]] of Object.entries(phases).entries()) {
    const crd = join(root, 'crds', `facetrain.dev_${kind.toLowerCase()}s.yaml`);
    const definition = parse(await readFile(crd, 'utf8')) as {
      spec: { versions: { schema: { openAPIV3Schema: Schema } }[] };
    };
    const schema = definition.spec.versions[0]!.schema.openAPIV3Schema;
    const { metrics } = resources[index]!;
    for (const { name, each } of metrics) {
      const { path } = (each.stateSet ?? each.gauge)!;
      const field = path.reduce<Schema | undefined>((at, key) => at?.properties?.[key], schema);
      assert(field, `${kind} ${name}: no field ${path.join('.')}`);
    }
    assert.deepEqual(metrics.find(({ name }) => name === 'phase')!.each.stateSet!.list, options);
  }
  const objects = await render({ metrics: { kubeStateMetrics: { enabled: true, labels: { app: 'ksm' } } } });
  const config = objects.find(({ kind }) => kind === 'ConfigMap')!;
  assert.equal(config.metadata.labels!.app, 'ksm');
  assert.deepEqual(parse(config.data['config.yaml']), parse(await readFile(file('kube-state-metrics.yaml'), 'utf8')));
});

test('the PodMonitor selects one pod of each job, of both kinds, by a port that it has', async () => {
  const objects = await render({ metrics: { podMonitor: { enabled: true } } });
  const { spec } = objects.find(({ kind }) => kind === 'PodMonitor')!;
  const podsOf = ({ actions }: Plan<object>) =>
    actions.flatMap((action) =>
      action.type === 'create' && action.object.kind === 'Pod' ? [action.object as Pod] : [],
    );
  for (const pods of [
    podsOf(planFaceTrainJob(makeJob().observe(), START, testEnvironment)),
    podsOf(planQuantizeJob(makeQuantizeJob().observe(), START, testEnvironment)),
  ]) {
    const selected = pods.filter(({ metadata: { labels } }) =>
      Object.entries(spec.selector.matchLabels).every(([key, value]) => labels[key] === value),
    );
    assert.equal(selected.length, 1, pods.map(({ metadata }) => metadata.name).join());
    const ports = selected[0]!.spec.containers.flatMap(({ ports = [] }) => ports.map(({ name }) => name));
    assert(ports.includes(spec.podMetricsEndpoints[0].port));
    for (const label of spec.podTargetLabels) assert(selected[0]!.metadata.labels[label]);
  }
});
