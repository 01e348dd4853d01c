/**
 * Measures speed and cost of the operator in a cluster of kwok nodes. Usage: `npm run bench -- operator [options]`.
 *
 * Each figure is printed beside that of JobSet 0.8, measured at another time with this control plane, and beside the
 * aim. Plain POSTs of the same pods alternate with the operator in this run: they show what the API server can take.
 * Compare ratios, as the machine may have other work; writes and CPU seconds depend on it least.
 */
import { parseArgs } from 'node:util';
import type { Writes } from './audit-log.ts';
import { BenchCluster, OPERATOR } from './kwok-cluster.ts';
import { OperatorProcess, usageBetween } from './operator-process.ts';

const HELP = `Usage: npm run bench -- operator [options]

--only NAME,NAME     gang, throughput, idle, scale, restart, failover (default: all)
--gang COUNT         trainers of one job whose latency is measured (default 32)
--gang-rounds COUNT  (default 20)
--jobs COUNT         jobs that are applied together (default 100)
--trainers COUNT     of each of those (default 8)
--rounds COUNT       how often they are (default 3)
--idle-seconds COUNT for which requests are counted while nothing happens (default 60)
--many-jobs COUNT    jobs in the largest cluster (default 1250)
--failovers COUNT    by each signal (default 3)
--nodes COUNT        (default 200)
--node-option TEXT   passed to the operator's node, such as --cpu-prof
`;
const COUNTS = {
  gang: 32,
  'gang-rounds': 20,
  jobs: 100,
  trainers: 8,
  rounds: 3,
  'idle-seconds': 60,
  'many-jobs': 1250,
  failovers: 3,
  nodes: 200,
};
type Settings = typeof COUNTS;

interface Figure {
  name: string;
  unit: string;
  value: number;
  /** The same of JobSet 0.8 on 2 cores, with this control plane and the client limits of its controllers raised. */
  jobset?: number;
  aim?: number;
}

/** What every scenario gets. */
interface ScenarioContext {
  cluster: BenchCluster;
  /** The one that leads. A scenario that ends it sets another. */
  operator: OperatorProcess;
  settings: Settings;
  report: (figure: Figure) => void;
  startOperator: () => Promise<OperatorProcess>;
}

const seconds = (milliseconds: number): number => milliseconds / 1000;
const names = (prefix: string, count: number): string[] => Array.from({ length: count }, (_, i) => `${prefix}-${i}`);
const pause = (milliseconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, milliseconds));

const API_SERVER = 'kube-apiserver';

/** CPU time by program: those of the control plane, and the operator. */
const cpuSeconds = async (cluster: BenchCluster, operator: OperatorProcess): Promise<Record<string, number>> => ({
  ...(await cluster.cpuSeconds()),
  operator: (await operator.usage()).cpuSeconds,
});

const difference = (after: Record<string, number>, before: Record<string, number>): Record<string, number> =>
  Object.fromEntries(Object.entries(after).map(([name, value]) => [name, value - (before[name] ?? 0)]));

/** The nearest-rank quantile: the smallest value that at least this share of the values does not exceed. */
function quantile(values: number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)]!;
}
const median = (values: number[]): number => quantile(values, 0.5);

/**
 * Latency of one gang: from apply until its pods exist, and from a pod's failure until those of the next attempt do.
 */
async function gang({
  cluster,
  settings: { gang: size, 'gang-rounds': rounds },
  report,
}: ScenarioContext): Promise<void> {
  const created: number[] = [];
  const recreated: number[] = [];
  for (let round = -1; round < rounds; round++) {
    const job = `gang-${round + 1}`;
    const applied = performance.now();
    await cluster.apply(job, size);
    const exist = (await cluster.podsExist([job], 0, size)) - applied;
    await cluster.jobsRun([job]);
    const failed = performance.now();
    await cluster.failPod(`${job}-0-${size - 1}`);
    const again = (await cluster.podsExist([job], 1, size)) - failed;
    await cluster.remove([job]);
    if (round < 0) continue; // round -1 warms up
    created.push(exist);
    recreated.push(again);
  }
  report({ name: `apply -> all ${size} pods exist, p50`, unit: 'ms', value: median(created), jobset: 431, aim: 150 });
  report({ name: `apply -> all ${size} pods exist, p99`, unit: 'ms', value: quantile(created, 0.99), jobset: 518 });
  report({
    name: `a failed pod -> all ${size} of the next attempt exist, p50`,
    unit: 'ms',
    value: median(recreated),
    jobset: 1516,
    aim: 300,
  });
  report({
    name: `a failed pod -> all ${size} of the next attempt exist, p99`,
    unit: 'ms',
    value: quantile(recreated, 0.99),
  });
}

/**
 * Many jobs applied together, alternating with plain POSTs of as many pods. The jobs of the last round stay, for
 * `idle`.
 */
async function throughput({
  cluster,
  operator,
  settings: { jobs: jobCount, trainers, rounds },
  report,
}: ScenarioContext): Promise<void> {
  const count = jobCount * trainers;
  await cluster.applyAll(['sample'], trainers);
  await cluster.jobsRun(['sample']);
  const templates = await cluster.podTemplates('sample');
  await cluster.remove(['sample']);
  const rates: number[] = [];
  const plainRates: number[] = [];
  const running: number[] = [];
  const plainRunning: number[] = [];
  const cpu: Record<string, number>[] = [];
  const plainCpu: number[] = [];
  const writes: Writes[] = [];
  for (let round = 0; round < rounds; round++) {
    if (round > 0) await cluster.remove(names('many', jobCount));
    const idle = await cluster.cpuSeconds();
    const plain = await cluster.createPlain(templates, count);
    plainRates.push(count / seconds(plain.created));
    plainRunning.push(seconds(plain.running));
    plainCpu.push(difference(await cluster.cpuSeconds(), idle)[API_SERVER]!);
    await cluster.removePlain();
    const position = await cluster.audit.end();
    const before = await cpuSeconds(cluster, operator);
    const applied = performance.now();
    const jobs = names('many', jobCount);
    const [, exist, run] = await Promise.all([
      cluster.applyAll(jobs, trainers),
      cluster.podsExist(jobs, 0, trainers),
      cluster.jobsRun(jobs),
    ]);
    cpu.push(difference(await cpuSeconds(cluster, operator), before));
    writes.push(await cluster.audit.writesSince(position, `${OPERATOR.namespace}:${OPERATOR.account}`));
    rates.push(count / seconds(exist - applied));
    running.push(seconds(run - applied));
  }
  const title = `${jobCount} jobs x ${trainers} pods`;
  report({ name: `${title}: pods created`, unit: '1/s', value: median(rates), jobset: 50, aim: 120 });
  report({ name: `${title}: the same pods by plain POSTs`, unit: '1/s', value: median(plainRates) });
  report({ name: `${title}: until all run`, unit: 's', value: median(running), jobset: 16.3, aim: 10 });
  report({ name: `${title}: until all run, plain POSTs`, unit: 's', value: median(plainRunning) });
  const cpuOf = (program: string) => median(cpu.map((used) => used[program]!));
  report({ name: `${title}: CPU time of the operator`, unit: 's', value: cpuOf('operator'), jobset: 3.2 });
  report({ name: `${title}: CPU time of the API server`, unit: 's', value: cpuOf(API_SERVER), jobset: 15.4 });
  report({ name: `${title}: CPU time of the API server, plain POSTs`, unit: 's', value: median(plainCpu) });
  const perJob = (counts: number[]) => median(counts) / jobCount;
  const total = ({ operator }: Writes) => Object.values(operator).reduce((sum, value) => sum + value, 0);
  report({ name: `${title}: writes a job`, unit: '', value: perJob(writes.map(total)) });
  for (const what of [...new Set(writes.flatMap(({ operator }) => Object.keys(operator)))].sort())
    report({
      name: `${title}: ${what} a job`,
      unit: '',
      value: perJob(writes.map(({ operator }) => operator[what] ?? 0)),
    });
  report({
    name: `${title}: writes of the controllers of Endpoints a job`,
    unit: '',
    value: perJob(writes.map(({ endpoints }) => endpoints)),
  });
}

/** Cost of jobs that run without any change. */
async function idle({ cluster, operator, settings, report }: ScenarioContext): Promise<void> {
  const { jobs, trainers } = settings;
  await runJobs(cluster, settings, jobs);
  await measureIdle(operator, settings, `${jobs} running jobs, idle`, report);
  report({
    name: `memory with ${jobs} jobs (${jobs * trainers} pods)`,
    unit: 'MiB',
    value: (await operator.memory()).now,
    jobset: 81,
    aim: 120,
  });
}

/** The same with many jobs, and the time until they run. */
async function scale({ cluster, operator, settings, report }: ScenarioContext): Promise<void> {
  const { 'many-jobs': jobs, trainers } = settings;
  const applied = performance.now();
  await runJobs(cluster, settings, jobs);
  report({ name: `${jobs} jobs: until all run`, unit: 's', value: seconds(performance.now() - applied) });
  await measureIdle(operator, settings, `${jobs} running jobs, idle`, report);
  const { now, peak } = await operator.memory();
  report({
    name: `memory with ${jobs} jobs (${jobs * trainers} pods)`,
    unit: 'MiB',
    value: now,
    aim: 260,
  });
  report({ name: `memory with ${jobs} jobs: most there ever was`, unit: 'MiB', value: peak });
}

/**
 * With many jobs: from the start of the operator until it has looked at each job. All keys are queued before its
 * workers start, so as many reconciles are one of each.
 */
async function restart(context: ScenarioContext): Promise<void> {
  const { cluster, operator, settings, report, startOperator } = context;
  const { 'many-jobs': jobs } = settings;
  await runJobs(cluster, settings, jobs);
  await operator.stop();
  const begun = performance.now();
  const next = await startOperator();
  while ((await next.reconciles()) < jobs) await pause(20);
  report({
    name: `restart with ${jobs} jobs -> all looked at`,
    unit: 's',
    value: seconds(performance.now() - begun),
    aim: 5,
  });
  context.operator = next;
}

/** Makes the first `count` of the jobs many-0, many-1, ... run; jobs that run already stay. */
async function runJobs(cluster: BenchCluster, { trainers }: Settings, count: number): Promise<void> {
  const jobs = names('many', count);
  await cluster.applyAll(
    jobs.filter((job) => !cluster.isRunning(job)),
    trainers,
  );
  await cluster.jobsRun(jobs);
}

/** Counts requests and CPU time while nothing changes. */
async function measureIdle(
  operator: OperatorProcess,
  { 'idle-seconds': length }: Settings,
  title: string,
  report: ScenarioContext['report'],
): Promise<void> {
  await pause(10_000); // the events of the jobs' start are sent, garbage is collected
  const before = await operator.usage();
  await pause(1000 * length);
  const { requests, cpuSeconds } = usageBetween(before, await operator.usage());
  const perMinute = (count = 0) => (60 * count) / length;
  report({
    name: `${title}: writes but the lease's`,
    unit: '1/min',
    value: perMinute((requests.POST ?? 0) + (requests.PATCH ?? 0) + (requests.DELETE ?? 0)),
    jobset: 0,
    aim: 0,
  });
  report({ name: `${title}: writes of the lease`, unit: '1/min', value: perMinute(requests.PUT) });
  report({ name: `${title}: reads (watches opened anew)`, unit: '1/min', value: perMinute(requests.GET) });
  report({ name: `${title}: CPU`, unit: '% of a core', value: (100 * cpuSeconds) / length });
}

/** Time from the end of the leader, with a job applied at that moment, until the other replica has created its pod. */
async function failover(context: ScenarioContext): Promise<void> {
  const { cluster, settings, report, startOperator } = context;
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const times: number[] = [];
    for (let round = 0; round < settings.failovers; round++) {
      const standby = await startOperator();
      if (await standby.isLeading()) throw new Error('two replicas lead');
      const job = `failover-${signal.toLowerCase()}-${round}`;
      const ended = performance.now();
      await Promise.all([context.operator.stop(signal), cluster.apply(job, 1)]);
      times.push(seconds((await cluster.podsExist([job], 0, 1)) - ended));
      context.operator = standby;
      await cluster.remove([job]);
    }
    report({
      name: `failover: ${signal} to the leader -> the other has made a pod, p50`,
      unit: 's',
      value: median(times),
      ...(signal === 'SIGKILL' && { aim: 10 }),
    });
  }
}

const SCENARIOS: Record<string, (context: ScenarioContext) => Promise<void>> = {
  gang,
  throughput,
  idle,
  scale,
  restart,
  failover,
};

/** @throws Error when a count is no whole number from 1, or a scenario does not exist */
function readSettings(): { settings: Settings; scenarios: string[]; nodeOptions: string[] } {
  const options = {
    ...Object.fromEntries(Object.keys(COUNTS).map((name) => [name, { type: 'string' as const }])),
    only: { type: 'string' as const },
    help: { type: 'boolean' as const },
  };
  const { values } = parseArgs({ options: { ...options, 'node-option': { type: 'string', multiple: true } } }) as {
    values: Record<string, string | string[] | boolean | undefined>;
  };
  if (values.help) {
    console.log(HELP);
    process.exit(0);
  }
  const settings = Object.fromEntries(
    Object.entries(COUNTS).map(([name, fallback]) => {
      const value = Number(values[name] ?? fallback);
      if (!Number.isInteger(value) || value < 1)
        throw new Error(`--${name}: ${String(values[name])}; must be a whole number from 1`);
      return [name, value];
    }),
  ) as Settings;
  const scenarios = String(values.only ?? Object.keys(SCENARIOS).join(',')).split(',');
  const unknown = scenarios.find((name) => !Object.hasOwn(SCENARIOS, name));
  if (unknown !== undefined) throw new Error(`--only: ${unknown}; there are ${Object.keys(SCENARIOS).join(', ')}`);
  return { settings, scenarios, nodeOptions: (values['node-option'] ?? []) as string[] };
}

const format = (value: number | undefined): string =>
  value === undefined ? '' : value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);

const row = (name: string, value: string, jobset: string, aim: string): string =>
  `${name.padEnd(66)}${value.padStart(10)}${jobset.padStart(13)}${aim.padStart(8)}`;

async function main(): Promise<void> {
  const { settings, scenarios, nodeOptions } = readSettings();
  const cluster = await BenchCluster.start(settings.nodes);
  const operators: OperatorProcess[] = [];
  try {
    const startOperator = async () => {
      const operator = await OperatorProcess.start(cluster.plane, nodeOptions);
      operators.push(operator);
      return operator;
    };
    const figures: Figure[] = [];
    console.log(row(`${settings.nodes} kwok nodes, a real control plane`, 'Facetrain', 'JobSet 0.8*', 'aim'));
    const report = (figure: Figure) => {
      figures.push(figure);
      const { name, unit, value, jobset, aim } = figure;
      console.log(`${row(name, format(value), format(jobset), format(aim))}  ${unit}`);
    };
    const context: ScenarioContext = { cluster, operator: await startOperator(), settings, report, startOperator };
    await pause(5_000);
    report({ name: 'memory without jobs', unit: 'MiB', value: (await context.operator.memory()).now, jobset: 49 });
    for (const name of scenarios) await SCENARIOS[name]!(context);
    console.log('* measured at another time, with this control plane and its client limits raised, on 2 cores');
    console.log(JSON.stringify({ benchmark: 'operator', settings, figures }));
  } finally {
    for (const operator of operators) await operator.stop();
    await cluster.stop();
  }
}

await main();
process.exit(0);
