/**
 * Measures speed and cost of the operator in a cluster of kwok nodes. Usage: `npm run bench -- operator [options]`.
 *
 * Each figure is printed beside that of JobSet 0.8, measured on another machine with a control plane like this one, and
 * beside the aim. Plain POSTs of the same pods alternate with the operator in this run: they show what the API server
 * can take. Compare ratios, as the machine may have other work.
 */
import { parseArgs } from 'node:util';
import { BenchCluster } from './kwok-cluster.ts';
import { OperatorProcess, usageBetween } from './operator-process.ts';

const HELP = `Usage: npm run bench -- operator [options]

--only NAME,NAME     gang, throughput, idle, scale, failover (default: all)
--gang COUNT         trainers of one job whose latency is measured (default 32)
--gang-rounds COUNT  (default 20)
--jobs COUNT         jobs that are applied together (default 100)
--trainers COUNT     of each of those (default 8)
--rounds COUNT       how often they are (default 3)
--idle-seconds COUNT for which requests are counted while nothing happens (default 60)
--many-jobs COUNT    jobs in the largest cluster (default 1000)
--failovers COUNT    by each signal (default 3)
--nodes COUNT        (default 20)
--node-option TEXT   passed to the operator's node, such as --cpu-prof
`;
const COUNTS = {
  gang: 32,
  'gang-rounds': 20,
  jobs: 100,
  trainers: 8,
  rounds: 3,
  'idle-seconds': 60,
  'many-jobs': 1000,
  failovers: 3,
  nodes: 20,
};
type Settings = typeof COUNTS;

interface Figure {
  name: string;
  unit: string;
  value: number;
  /** The same of JobSet 0.8 with client limits raised, on 2 cores with kwok; measured on another machine. */
  jobset?: number;
  aim?: number;
}

/** What every scenario gets. */
interface ScenarioContext {
  cluster: BenchCluster;
  operator: OperatorProcess;
  settings: Settings;
  report: (figure: Figure) => void;
  startOperator: () => Promise<OperatorProcess>;
}

const seconds = (milliseconds: number): number => milliseconds / 1000;
const names = (prefix: string, count: number): string[] => Array.from({ length: count }, (_, i) => `${prefix}-${i}`);
const pause = (milliseconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, milliseconds));

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
  report({ name: `apply -> all ${size} pods exist, p50`, unit: 'ms', value: median(created), jobset: 357, aim: 150 });
  report({ name: `apply -> all ${size} pods exist, p99`, unit: 'ms', value: quantile(created, 0.99), jobset: 522 });
  report({
    name: `a failed pod -> all ${size} of the next attempt exist, p50`,
    unit: 'ms',
    value: median(recreated),
    jobset: 1560,
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
  const cpu: number[] = [];
  const requests: Record<string, number>[] = [];
  for (let round = 0; round < rounds; round++) {
    if (round > 0) await cluster.remove(names('many', jobCount));
    plainRates.push(count / seconds(await cluster.createPlain(templates, count)));
    await cluster.removePlain();
    const before = await operator.usage();
    const applied = performance.now();
    const jobs = names('many', jobCount);
    const [, exist, run] = await Promise.all([
      cluster.applyAll(jobs, trainers),
      cluster.podsExist(jobs, 0, trainers),
      cluster.jobsRun(jobs),
    ]);
    const used = usageBetween(before, await operator.usage());
    rates.push(count / seconds(exist - applied));
    running.push(seconds(run - applied));
    cpu.push(used.cpuSeconds);
    requests.push(used.requests);
  }
  const title = `${jobCount} jobs x ${trainers} pods`;
  report({ name: `${title}: pods created`, unit: '1/s', value: median(rates), jobset: 68, aim: 200 });
  report({
    name: `${title}: plain POSTs of the same pods, in this run`,
    unit: '1/s',
    value: median(plainRates),
    jobset: 292,
  });
  report({
    name: `${title}: share of plain POSTs`,
    unit: '%',
    value: (100 * median(rates)) / median(plainRates),
    jobset: (100 * 68) / 292,
  });
  report({ name: `${title}: until all run`, unit: 's', value: median(running) });
  report({ name: `${title}: operator's CPU time`, unit: 's', value: median(cpu), jobset: 2.35 });
  const total = (byMethod: Record<string, number>) => Object.values(byMethod).reduce((sum, value) => sum + value, 0);
  report({ name: `${title}: requests a job`, unit: '', value: median(requests.map(total)) / jobCount, jobset: 4.1 });
  report({
    name: `${title}: requests a job but those that make its pods`,
    unit: '',
    value: (median(requests.map(total)) - count) / jobCount,
  });
  for (const method of ['GET', 'POST', 'PATCH', 'DELETE']) {
    report({
      name: `${title}: ${method} a job`,
      unit: '',
      value: median(requests.map((byMethod) => byMethod[method] ?? 0)) / jobCount,
    });
  }
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
    jobset: 78,
    aim: 150,
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
    jobset: 260,
    aim: 260,
  });
  report({ name: `memory with ${jobs} jobs: most there ever was`, unit: 'MiB', value: peak });
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
async function failover({
  cluster,
  operator,
  settings: { failovers },
  report,
  startOperator,
}: ScenarioContext): Promise<void> {
  let leader = operator;
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    const times: number[] = [];
    for (let round = 0; round < failovers; round++) {
      const standby = await startOperator();
      if (await standby.isLeading()) throw new Error('two replicas lead');
      const job = `failover-${signal.toLowerCase()}-${round}`;
      const ended = performance.now();
      await Promise.all([leader.stop(signal), cluster.apply(job, 1)]);
      times.push(seconds((await cluster.podsExist([job], 0, 1)) - ended));
      leader = standby;
      await cluster.remove([job]);
    }
    report({
      name: `failover: ${signal} to the leader -> the other has made a pod, p50`,
      unit: 's',
      value: median(times),
    });
  }
}

const SCENARIOS = { gang, throughput, idle, scale, failover };

/** @throws Error when a count is no whole number from 1, or a scenario does not exist */
function readSettings(): { settings: Settings; scenarios: (keyof typeof SCENARIOS)[]; nodeOptions: string[] } {
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
  const scenarios = String(values.only ?? Object.keys(SCENARIOS).join(',')).split(',') as (keyof typeof SCENARIOS)[];
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
    const operator = await startOperator();
    const figures: Figure[] = [];
    console.log(row('kwok nodes, a real kube-scheduler', 'Facetrain', 'JobSet 0.8*', 'aim'));
    const report = (figure: Figure) => {
      figures.push(figure);
      const { name, unit, value, jobset, aim } = figure;
      console.log(`${row(name, format(value), format(jobset), format(aim))}  ${unit}`);
    };
    await pause(5_000);
    report({ name: 'memory without jobs', unit: 'MiB', value: (await operator.memory()).now, jobset: 49 });
    for (const name of scenarios) await SCENARIOS[name]({ cluster, operator, settings, report, startOperator });
    console.log('* measured elsewhere, on a control plane like this one: 2 cores, kwok, client limits raised');
    console.log(JSON.stringify({ benchmark: 'operator', settings, figures }));
  } finally {
    for (const operator of operators) await operator.stop();
    await cluster.stop();
  }
}

await main();
process.exit(0);
