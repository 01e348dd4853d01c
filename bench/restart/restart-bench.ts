/**
 * Measures how soon a gang trains again after it lost a process or a node: `npm run bench -- restart [options]`.
 *
 * The cluster of e2e/ on this machine, with the real kubelet, scheduler and trainers. All its programs share the clock
 * of this machine, so times from the API server, the container runtime and the trainers' logs make one line.
 */
import { parseArgs } from 'node:util';
import { ExitCode } from '@facetrain/api';
import { Cluster } from '@facetrain/e2e/cluster/cluster';
import { buildImages, TRAINER_IMAGE } from '@facetrain/e2e/cluster/images';
import { installAll } from '@facetrain/e2e/cluster/install-facetrain';
import { applyExample, ON_WORKERS, reachesStep } from '@facetrain/e2e/testing/example-job';
import { type Job, Namespace } from '@facetrain/e2e/testing/namespace';
import { processesOf, signal } from '@facetrain/e2e/testing/processes';
import { isPodAlive } from '@facetrain/operator/controllers/observe';
import { type FirstStep, median, type PodObject, Watched } from './timeline.ts';

const HELP = `Usage: npm run bench -- restart [options]

--kills COUNT        how often a trainer is killed: to start again in its pod, and so that new pods follow (default 5)
--node-losses COUNT  how often a node loses its power (default 1)
--grace SECONDS      until Kubernetes calls a silent node's state unknown (default 50, as by default there)
`;
const COUNTS = { kills: 5, 'node-losses': 1, grace: 50 };
type Settings = typeof COUNTS;

const TRAINERS = 2;
/** Steps between checkpoints, and the step after which a gang is disturbed. */
const CHECKPOINT_STEPS = 5;
const DISTURBED_AT = 7;

/** Milliseconds by part, in their order; what comes first ends last in the gang. */
type Parts = [name: string, milliseconds: number][];

/** The example without its quantization, and long enough to be disturbed. */
function trainLong(spec: Job['spec']): void {
  spec.epochs = 100;
  spec.checkpoint = { everySteps: CHECKPOINT_STEPS };
  delete spec.quantize;
}

/** Pauses between the ends of parts. @param moments when each part ended, in milliseconds; not before the former */
function partsOf(begin: number, moments: [name: string, end: number][]): Parts {
  let last = begin;
  return moments.map(([name, end]) => {
    const taken = Math.max(end - last, 0);
    last = Math.max(end, last);
    return [name, taken];
  });
}

/**
 * From a loss until the next attempt trains.
 * @param begin the time of the loss @param detected what came before the other trainers' ends, and when
 */
async function nextAttempt(
  ns: Namespace,
  job: string,
  watched: Watched,
  begin: number,
  detected: [name: string, end: number][],
): Promise<Parts> {
  const name = (rank: number) => `${job}-1-${rank}`;
  const next = () => Array.from({ length: TRAINERS }, (_, rank) => watched.pod(name(rank)));
  const every = (check: (pod: PodObject) => boolean) => () => next().every((pod) => pod !== undefined && check(pod));
  const isNext = ({ metadata }: PodObject) => metadata.name.startsWith(`${job}-1-`);
  const ended = watched.until(() => watched.pods().every((pod) => isNext(pod) || !isPodAlive(pod)));
  const created = watched.until(every(() => true));
  const placed = watched.until(every(({ spec }) => spec.nodeName !== undefined));
  // Not the step of the checkpoint, which a trainer shows before it has trained.
  await reachesStep(ns, job, { attempt: 1, step: CHECKPOINT_STEPS + 1 });
  const first: FirstStep[] = await Promise.all(next().map((pod) => watched.firstStep(ns, pod!)));
  return partsOf(begin, [
    ...detected,
    ['the other trainers end', await ended],
    ['pods are created', await created],
    ['pods have nodes', await placed],
    ['sandbox and volumes', Math.max(...first.map(({ fetchStarted, started }) => fetchStarted ?? started))],
    ['data is fetched', Math.max(...first.map(({ fetchEnded, started }) => fetchEnded ?? started))],
    ...startOf(first),
  ]);
}

/** From the start of the containers to the first step. */
function startOf(first: FirstStep[]): [name: string, end: number][] {
  // The rank that began last decides when all train.
  const slowest = first.reduce((a, b) => (a.started > b.started ? a : b));
  const { program, preflight, rendezvous, loading, step } = slowest.seconds;
  const stepped = Math.max(...first.map(({ time }) => time));
  let at = stepped - 1000 * (program + preflight + rendezvous + loading + step);
  const later = (seconds: number) => (at += 1000 * seconds);
  return [
    ['the trainers’ containers start', at],
    ['Node, addon and modules', later(program)],
    ['checks of the input', later(preflight)],
    ['rendezvous', later(rendezvous)],
    ['the checkpoint is loaded', later(loading)],
    ['the first step', stepped],
  ];
}

const attemptOf = (job: Job | undefined): number => job?.status?.attempt ?? 0;

/** The example, with trainers that are new pods after a failure. */
function trainInNewPods(spec: Job['spec']): void {
  trainLong(spec);
  // What the failure policy names is left to the operator.
  spec.failurePolicy = { rules: [{ exitCodes: [ExitCode.peerLost, 137], action: 'Restart' }] };
}

/** Kills a rank's processes, as the kernel does when memory is short. @returns when they had ended */
async function kill(ns: Namespace, watched: Watched, victim: string): Promise<{ begin: number; reported: number }> {
  const processes = await processesOf(ns.cluster, 'control-plane', victim);
  const { containerID } = containerOf(watched.pod(victim))!;
  const reported = watched.until(() => {
    const { state, restartCount } = containerOf(watched.pod(victim)) ?? {};
    return state?.terminated !== undefined || (restartCount ?? 0) > 0;
  });
  await signal(ns.cluster, 'control-plane', 'KILL', processes);
  const end = await reported;
  const { ended } = await watched.containerTimes(ns, watched.pod(victim)!, containerID);
  return { begin: ended, reported: end };
}

const containerOf = (pod: PodObject | undefined) => pod?.status?.containerStatuses?.[0];

/** A trainer is killed, and the pods are made anew. */
async function killRank(ns: Namespace, job: string): Promise<Parts> {
  await applyExample(ns, job, trainInNewPods);
  await using watched = await Watched.start(ns, job);
  await reachesStep(ns, job, { attempt: 0, step: DISTURBED_AT });
  const decided = watched.until(() => attemptOf(watched.job) === 1);
  const { begin, reported } = await kill(ns, watched, `${job}-0-${TRAINERS - 1}`);
  // Awaited here: the watches end with this scope.
  return await nextAttempt(ns, job, watched, begin, [
    ['the kubelet reports the end', reported],
    ['the kubelet ends the pod, the operator decides', await decided],
  ]);
}

/** A trainer is killed, and the kubelet starts all trainers again in their pods. */
async function killInPlace(ns: Namespace, job: string): Promise<Parts> {
  await applyExample(ns, job, trainLong);
  await using watched = await Watched.start(ns, job);
  await reachesStep(ns, job, { attempt: 0, step: DISTURBED_AT });
  const names = Array.from({ length: TRAINERS }, (_, rank) => `${job}-0-${rank}`);
  const { begin, reported } = await kill(ns, watched, names.at(-1)!);
  await reachesStep(ns, job, { attempt: 0, inPlace: 1, step: CHECKPOINT_STEPS + 1 });
  const first = await Promise.all(names.map((name) => watched.firstStep(ns, watched.pod(name)!)));
  return partsOf(begin, [
    ['the kubelet reports the end', reported],
    ['the kubelet starts the containers again', Math.max(...first.map(({ started }) => started))],
    ...startOf(first),
  ]);
}

/** Ends a node as a power failure does. */
async function loseNode(ns: Namespace, job: string, grace: number): Promise<Parts> {
  const { cluster } = ns;
  const worker = await cluster.addNode();
  await cluster.load([TRAINER_IMAGE], [worker]);
  await applyExample(ns, job, (spec) => {
    trainLong(spec);
    spec.trainers.podTemplate = { spec: ON_WORKERS };
  });
  await using watched = await Watched.start(ns, job);
  await reachesStep(ns, job, { attempt: 0, step: DISTURBED_AT });
  if (!watched.pods().some(({ spec }) => spec.nodeName === worker)) throw new Error(`no trainer is on ${worker}`);
  const begin = Date.now();
  const unknown = watched.until(() => watched.isSilent(worker));
  const decided = watched.until(() => attemptOf(watched.job) === 1);
  await cluster.killNode(worker);
  // Awaited here: the watches end with this scope.
  return await nextAttempt(ns, job, watched, begin, [
    [`Kubernetes calls the node silent (${grace} s)`, await unknown],
    ['the operator decides', await decided],
  ]);
}

/** The median of each part, and of the whole. */
function summary(rounds: Parts[]): { parts: Record<string, number>; total: number } {
  const names = rounds[0]!.map(([name]) => name);
  const whole = rounds.map((parts) => parts.reduce((sum, [, milliseconds]) => sum + milliseconds, 0));
  return {
    parts: Object.fromEntries(names.map((name, part) => [name, median(rounds.map((parts) => parts[part]![1]))])),
    total: median(whole),
  };
}

function print(title: string, rounds: Parts[], aimSeconds: number): object {
  const { parts, total } = summary(rounds);
  const row = (name: string, milliseconds: number) =>
    console.log(`  ${name.padEnd(50)}${(milliseconds / 1000).toFixed(2).padStart(8)} s`);
  console.log(`${title}, median of ${rounds.length}`);
  for (const [name, milliseconds] of Object.entries(parts)) row(name, milliseconds);
  row(`until the gang has trained a step again (aim ${aimSeconds} s)`, total);
  return { title, rounds: rounds.length, aimSeconds, totalSeconds: total / 1000, milliseconds: parts };
}

/** @throws Error when a count is no whole number */
function readSettings(): Settings {
  const counts = Object.fromEntries(Object.keys(COUNTS).map((name) => [name, { type: 'string' as const }]));
  const { values } = parseArgs({ options: { ...counts, help: { type: 'boolean' as const } } }) as {
    values: Record<string, string | boolean | undefined>;
  };
  if (values.help) {
    console.log(HELP);
    process.exit(0);
  }
  return Object.fromEntries(
    Object.entries(COUNTS).map(([name, fallback]) => {
      const value = Number(values[name] ?? fallback);
      if (!Number.isInteger(value) || value < 0) throw new Error(`--${name}: ${values[name]}; must be a whole number`);
      return [name, value];
    }),
  ) as Settings;
}

async function main(): Promise<void> {
  const { kills, 'node-losses': losses, grace } = readSettings();
  const note = (text: string) => process.stderr.write(`${text}\n`);
  await buildImages(note);
  const cluster = await Cluster.start({ nodeGraceSeconds: grace });
  try {
    await installAll(cluster, note);
    const ns = await Namespace.create(cluster, 'bench');
    const measure = async (count: number, once: (job: string) => Promise<Parts>): Promise<Parts[]> => {
      const rounds: Parts[] = [];
      for (let round = 0; round < count; round++) {
        // Another job each time: restarts in a row would wait for each other.
        const job = `${once.name}-${round}`.toLowerCase();
        rounds.push(await once(job));
        note(`${job}: ${JSON.stringify(rounds.at(-1))}`);
        await ns.kubectl('delete', 'facetrainjob', job);
      }
      return rounds;
    };
    const figures: object[] = [];
    // One more, whose start fills caches.
    if (kills > 0) {
      const [, ...rounds] = await measure(kills + 1, function inplace(job) {
        return killInPlace(ns, job);
      });
      figures.push(print('a trainer is killed, and starts again in its pod', rounds, 10));
      const inNewPods = await measure(kills, function killed(job) {
        return killRank(ns, job);
      });
      figures.push(print('a trainer is killed, and new pods follow', inNewPods, 10));
    }
    if (losses > 0) {
      const rounds = await measure(losses, function loss(job) {
        return loseNode(ns, job, grace);
      });
      figures.push(print('a node loses its power', rounds, 60));
    }
    console.log(JSON.stringify({ benchmark: 'restart', trainers: TRAINERS, figures }));
  } finally {
    await cluster.stop();
  }
}

await main();
process.exit(0);
