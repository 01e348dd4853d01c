/**
 * Measures speed and cost of the operator in a cluster of kwok nodes. Usage: `npm run bench -- operator [options]`.
 *
 * Each figure is printed beside the aim, and with --jobset beside that of JobSet 0.8, by turns on the same control
 * plane. Plain POSTs of the same pods alternate with both: they show what the API server can take.
 * Compare ratios, as the machine may have other work; writes and CPU seconds depend on it least.
 */
import { parseArgs } from 'node:util';
import type { Writes } from './audit-log.ts';
import type { Gangs } from './gangs.ts';
import { JOBSET_ACCOUNTS, JobSet } from './jobset.ts';
import { BenchCluster, OPERATOR } from './kwok-cluster.ts';
import { OperatorProcess, usageBetween } from './operator-process.ts';

const HELP = `Usage: npm run bench -- operator [options]

--only NAME,NAME     gang, throughput, idle, scale, restart, failover, nodes (default: all)
--jobset             measure JobSet too: gang, throughput, idle, memory without jobs
--gang COUNT         trainers of one job whose latency is measured (default 32)
--gang-rounds COUNT  (default 20)
--jobs COUNT         jobs that are applied together (default 100)
--trainers COUNT     of each of those (default 8)
--rounds COUNT       how often they are (default 3)
--idle-seconds COUNT for which requests are counted while nothing happens (default 60)
--many-jobs COUNT    jobs in the largest cluster (default 1250)
--failovers COUNT    by each signal (default 3)
--nodes COUNT        (default 200)
--many-nodes COUNT   in the cluster that nodes measures (default 5000)
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
  'many-nodes': 5000,
};
type Settings = typeof COUNTS;

interface Figure {
  name: string;
  unit: string;
  value: number;
  /** The same of JobSet 0.8, in this run. */
  jobset?: number | undefined;
  aim?: number;
}

/** What every scenario gets. */
interface ScenarioContext {
  cluster: BenchCluster;
  /** The one that leads. A scenario that ends it sets another. */
  operator: OperatorProcess;
  /** Does not run; a scenario starts it for its turns. undefined: without --jobset. */
  jobset: JobSet | undefined;
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

const OURS = [`${OPERATOR.namespace}:${OPERATOR.account}`] as const;

/** Milliseconds from apply until the pods of a gang exist, and from a pod's failure until the next attempt's do. */
async function gangRound(gangs: Gangs, job: string, size: number): Promise<{ created: number; recreated: number }> {
  const applied = performance.now();
  await gangs.apply(job, size);
  const created = (await gangs.podsExist([job], 0, size)) - applied;
  await gangs.jobsRun([job]);
  const failed = performance.now();
  await gangs.failOne(job);
  const recreated = (await gangs.podsExist([job], 1, size)) - failed;
  await gangs.remove([job]);
  return { created, recreated };
}

/** Latency of one gang. JobSet runs during all rounds: events of a single gang's pods cost it next to nothing. */
async function gang({ cluster, jobset, settings, report }: ScenarioContext): Promise<void> {
  const { gang: size, 'gang-rounds': rounds } = settings;
  const ours: { created: number; recreated: number }[] = [];
  const others: typeof ours = [];
  await jobset?.start();
  for (let round = -1; round < rounds; round++) {
    const our = await gangRound(cluster, `gang-${round + 1}`, size);
    const other = jobset && (await gangRound(jobset, `gang-${round + 1}`, size));
    if (round < 0) continue; // round -1 warms up
    ours.push(our);
    if (other) others.push(other);
  }
  await jobset?.stop();
  const latency = (name: string, of: 'created' | 'recreated', share: number, aim?: number) =>
    report({
      name: `${name}, p${100 * share}`,
      unit: 'ms',
      value: quantile(
        ours.map((round) => round[of]),
        share,
      ),
      jobset:
        jobset &&
        quantile(
          others.map((round) => round[of]),
          share,
        ),
      ...(aim !== undefined && { aim }),
    });
  latency(`apply -> all ${size} pods exist`, 'created', 0.5, 150);
  latency(`apply -> all ${size} pods exist`, 'created', 0.99);
  latency(`a failed pod -> all ${size} of the next attempt exist`, 'recreated', 0.5, 300);
  latency(`a failed pod -> all ${size} of the next attempt exist`, 'recreated', 0.99);
}

/** What it costs one of the controllers to make all pods of many jobs. */
interface Turn {
  /** Pods a second, until the last exists. */
  rate: number;
  /** Seconds until all run. */
  running: number;
  /** CPU seconds by program; the controller is `operator`. */
  cpu: Record<string, number>;
  writes: Writes;
}

async function manyJobs(
  { cluster, settings: { jobs: jobCount, trainers } }: ScenarioContext,
  gangs: Gangs,
  programs: () => Promise<Record<string, number>>,
  accounts: readonly string[],
): Promise<Turn> {
  const position = await cluster.audit.end();
  const before = await programs();
  const applied = performance.now();
  const jobs = names('many', jobCount);
  const [, exist, run] = await Promise.all([
    gangs.applyAll(jobs, trainers),
    gangs.podsExist(jobs, 0, trainers),
    gangs.jobsRun(jobs),
  ]);
  const cpu = difference(await programs(), before);
  return {
    rate: (jobCount * trainers) / seconds(exist - applied),
    running: seconds(run - applied),
    cpu,
    writes: await cluster.audit.writesSince(position, accounts),
  };
}

/** Many jobs applied together, by turns with plain POSTs of as many pods, and with JobSet. */
async function throughput(context: ScenarioContext): Promise<void> {
  const { cluster, operator, jobset, settings, report } = context;
  const { jobs: jobCount, trainers, rounds } = settings;
  const count = jobCount * trainers;
  await cluster.applyAll(['sample'], trainers);
  await cluster.jobsRun(['sample']);
  const templates = await cluster.podTemplates('sample');
  await cluster.remove(['sample']);
  const plain: { rate: number; running: number; cpu: number }[] = [];
  const ours: Turn[] = [];
  const others: Turn[] = [];
  for (let round = 0; round < rounds; round++) {
    const idle = await cluster.cpuSeconds();
    const { created, running } = await cluster.createPlain(templates, count);
    const cpu = difference(await cluster.cpuSeconds(), idle)[API_SERVER]!;
    plain.push({ rate: count / seconds(created), running: seconds(running), cpu });
    await cluster.removePlain();
    ours.push(await manyJobs(context, cluster, () => cpuSeconds(cluster, operator), OURS));
    await cluster.remove(names('many', jobCount));
    if (!jobset) continue;
    await jobset.start();
    const programs = async () => ({ ...(await cluster.cpuSeconds()), operator: await jobset.cpuSeconds() });
    others.push(await manyJobs(context, jobset, programs, JOBSET_ACCOUNTS));
    await jobset.remove(names('many', jobCount));
    await jobset.stop();
  }
  const title = `${jobCount} jobs x ${trainers} pods`;
  const of = (value: (turn: Turn) => number) => ({
    value: median(ours.map(value)),
    jobset: jobset && median(others.map(value)),
  });
  const ofPlain = (value: (turn: (typeof plain)[number]) => number) => median(plain.map(value));
  report({ name: `${title}: pods created`, unit: '1/s', ...of(({ rate }) => rate), aim: 120 });
  report({ name: `${title}: the same pods by plain POSTs`, unit: '1/s', value: ofPlain(({ rate }) => rate) });
  report({ name: `${title}: until all run`, unit: 's', ...of(({ running }) => running), aim: 10 });
  report({ name: `${title}: until all run, plain POSTs`, unit: 's', value: ofPlain(({ running }) => running) });
  const cpuOf = (program: string) => of(({ cpu }) => cpu[program]!);
  report({ name: `${title}: CPU time of the operator`, unit: 's', ...cpuOf('operator') });
  report({ name: `${title}: CPU time of Kubernetes' controllers`, unit: 's', ...cpuOf('kube-controller-manager') });
  report({ name: `${title}: CPU time of the API server`, unit: 's', ...cpuOf(API_SERVER) });
  report({ name: `${title}: CPU time of the API server, plain POSTs`, unit: 's', value: ofPlain(({ cpu }) => cpu) });
  const perJob = (value: (writes: Writes) => number) => of(({ writes }) => value(writes) / jobCount);
  const total = ({ operator: by }: Writes) => Object.values(by).reduce((sum, value) => sum + value, 0);
  report({ name: `${title}: writes a job`, unit: '', ...perJob(total) });
  const kinds = [...ours, ...others].flatMap(({ writes }) => Object.keys(writes.operator));
  for (const what of [...new Set(kinds)].sort())
    report({ name: `${title}: ${what} a job`, unit: '', ...perJob(({ operator: by }) => by[what] ?? 0) });
  report({
    name: `${title}: writes of the controllers of Endpoints a job`,
    unit: '',
    ...perJob(({ endpoints }) => endpoints),
  });
}

/** Cost of jobs that run without any change. Without JobSet, they stay for `scale`. */
async function idle(context: ScenarioContext): Promise<void> {
  const { cluster, operator, jobset, settings, report } = context;
  const { jobs, trainers } = settings;
  await runJobs(cluster, settings, jobs);
  const ours = { ...(await ourIdle(operator, settings)), memory: (await operator.memory()).now };
  let other: (Idle & { memory: number }) | undefined;
  if (jobset) {
    await cluster.remove(names('many', jobs));
    await jobset.start();
    await jobset.applyAll(names('many', jobs), trainers);
    await jobset.jobsRun(names('many', jobs));
    other = { ...(await otherIdle(cluster, jobset, settings)), memory: await jobset.memory() };
    await jobset.remove(names('many', jobs));
    await jobset.stop();
  }
  reportIdle(`${jobs} running jobs, idle`, ours, other, report);
  report({
    name: `memory with ${jobs} jobs (${jobs * trainers} pods)`,
    unit: 'MiB',
    value: ours.memory,
    jobset: other?.memory,
    aim: 120,
  });
}

/** The same with many jobs, and the time until they run. */
async function scale({ cluster, operator, settings, report }: ScenarioContext): Promise<void> {
  const { 'many-jobs': jobs, trainers } = settings;
  const applied = performance.now();
  await runJobs(cluster, settings, jobs);
  report({ name: `${jobs} jobs: until all run`, unit: 's', value: seconds(performance.now() - applied) });
  reportIdle(`${jobs} running jobs, idle`, await ourIdle(operator, settings), undefined, report);
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

/** Requests and CPU time while nothing changes, a minute. */
interface Idle {
  writes: number;
  leases: number;
  reads: number;
  /** Share of a core. */
  cpu: number;
}

/** The events of the jobs' start are sent by then, and garbage is collected. */
const settled = () => pause(10_000);

async function ourIdle(operator: OperatorProcess, { 'idle-seconds': length }: Settings): Promise<Idle> {
  await settled();
  const before = await operator.usage();
  await pause(1000 * length);
  const { requests, cpuSeconds } = usageBetween(before, await operator.usage());
  const perMinute = (count = 0) => (60 * count) / length;
  return {
    writes: perMinute((requests.POST ?? 0) + (requests.PATCH ?? 0) + (requests.DELETE ?? 0)),
    leases: perMinute(requests.PUT),
    reads: perMinute(requests.GET),
    cpu: cpuSeconds / length,
  };
}

async function otherIdle(cluster: BenchCluster, jobset: JobSet, { 'idle-seconds': length }: Settings): Promise<Idle> {
  await settled();
  const position = await cluster.audit.end();
  const from = Date.now();
  const before = await jobset.cpuSeconds();
  await pause(1000 * length);
  const cpu = ((await jobset.cpuSeconds()) - before) / length;
  const { writes, leases, reads } = await cluster.audit.requestsBetween(
    position,
    [from, Date.now()],
    JOBSET_ACCOUNTS[0],
  );
  const perMinute = (count: number) => (60 * count) / length;
  return { writes: perMinute(writes), leases: perMinute(leases), reads: perMinute(reads), cpu };
}

function reportIdle(title: string, ours: Idle, other: Idle | undefined, report: ScenarioContext['report']): void {
  const row = (name: string, unit: string, of: (idle: Idle) => number, aim?: number) =>
    report({
      name: `${title}: ${name}`,
      unit,
      value: of(ours),
      jobset: other && of(other),
      ...(aim !== undefined && { aim }),
    });
  row("writes but the lease's", '1/min', ({ writes }) => writes, 0);
  row('writes of the lease', '1/min', ({ leases }) => leases);
  row('reads (watches opened anew)', '1/min', ({ reads }) => reads);
  row('CPU', '% of a core', ({ cpu }) => 100 * cpu);
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

/** Memory of an operator that starts in a small and in a large cluster; nothing ends the nodes, so it is the last. */
async function nodes({ cluster, operator, settings, report, startOperator }: ScenarioContext): Promise<void> {
  const { nodes: few, 'many-nodes': many } = settings;
  await operator.stop();
  for (const count of [few, many]) {
    if (count > few) await cluster.addNodes(few, count);
    const next = await startOperator();
    await settled();
    const { now, peak } = await next.memory();
    report({ name: `memory of a new operator, ${count} nodes`, unit: 'MiB', value: now });
    report({ name: `memory of a new operator, ${count} nodes: most there ever was`, unit: 'MiB', value: peak });
    await next.stop();
  }
}

const SCENARIOS: Record<string, (context: ScenarioContext) => Promise<void>> = {
  gang,
  throughput,
  idle,
  scale,
  restart,
  failover,
  nodes,
};

/** @throws Error when a count is no whole number from 1, or a scenario does not exist */
function readSettings(): { settings: Settings; scenarios: string[]; nodeOptions: string[]; withJobSet: boolean } {
  const options = {
    ...Object.fromEntries(Object.keys(COUNTS).map((name) => [name, { type: 'string' as const }])),
    only: { type: 'string' as const },
    jobset: { type: 'boolean' as const },
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
  const nodeOptions = (values['node-option'] ?? []) as string[];
  return { settings, scenarios, nodeOptions, withJobSet: values.jobset === true };
}

const format = (value: number | undefined): string =>
  value === undefined ? '' : value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);

const row = (name: string, value: string, jobset: string, aim: string): string =>
  `${name.padEnd(66)}${value.padStart(10)}${jobset.padStart(13)}${aim.padStart(8)}`;

async function main(): Promise<void> {
  const { settings, scenarios, nodeOptions, withJobSet } = readSettings();
  const cluster = await BenchCluster.start(settings.nodes);
  const operators: OperatorProcess[] = [];
  const jobset = withJobSet ? await JobSet.install(cluster.plane) : undefined;
  try {
    const startOperator = async () => {
      const operator = await OperatorProcess.start(cluster.plane, nodeOptions);
      operators.push(operator);
      return operator;
    };
    const figures: Figure[] = [];
    console.log(
      row(`${settings.nodes} kwok nodes, a real control plane`, 'Facetrain', withJobSet ? 'JobSet 0.8' : '', 'aim'),
    );
    const report = (figure: Figure) => {
      figures.push(figure);
      const { name, unit, value, jobset, aim } = figure;
      console.log(`${row(name, format(value), format(jobset), format(aim))}  ${unit}`);
    };
    const operator = await startOperator();
    const context: ScenarioContext = { cluster, operator, jobset, settings, report, startOperator };
    await jobset?.start();
    await pause(5_000);
    const { now } = await operator.memory();
    report({ name: 'memory without jobs', unit: 'MiB', value: now, jobset: await jobset?.memory() });
    await jobset?.stop();
    for (const name of scenarios) await SCENARIOS[name]!(context);
    console.log(JSON.stringify({ benchmark: 'operator', settings, figures }));
  } finally {
    for (const operator of operators) await operator.stop();
    await jobset?.close();
    await cluster.stop();
  }
}

await main();
process.exit(0);
