/** `kubectl facetrain status` and `top`: what jobs do, and what they wait for. */

import { controllerOf } from '@facetrain/operator/runtime/resource';
import { nextSearch } from '@facetrain/planner/facetrainjob/elastic';
import { isGone, timesStartedAgain } from '@facetrain/planner/gone-containers';
import type { Outcome } from '../command-action.ts';
import { duration, oneLine } from '../terminal-output.ts';
import {
  attemptOf,
  type Cluster,
  type Event,
  isFinished,
  isPlaceholder,
  type Job,
  type Pod,
  type QuantizeJob,
  ranksText,
  readyOf,
  timeOfEvent,
  type Workload,
} from './cluster.ts';
import { bar, speedAndTime } from './progress-bar.ts';

/** Warnings that are shown. */
const WARNINGS = 5;

interface Node {
  text: string;
  children?: Node[];
}

/**
 * A job as a tree: why it waits, its number of trainers, its quota, its progress, its attempts with their pods, its
 * quantization, recent warnings.
 */
export async function jobStatus(cluster: Cluster, name: string): Promise<Outcome> {
  const found = await cluster.jobOfEitherKind(name);
  if (found.kind === 'QuantizeJob') return quantizationStatus(cluster, found.job);
  const { job } = found;
  const [pods, workloads, quantizeJob, warnings] = await Promise.all([
    cluster.pods(job.metadata.uid),
    job.spec.queue === undefined ? [] : cluster.workloads(job.metadata.uid),
    job.status?.quantizeJobName === undefined ? undefined : cluster.quantizeJob(job.status.quantizeJobName),
    cluster.warnings(job.metadata.uid),
  ]);
  const quantizerPods = quantizeJob ? await cluster.pods(quantizeJob.metadata.uid) : [];
  const tree: Node = {
    text: `FaceTrainJob ${name}  ${job.status?.phase ?? 'not seen by the operator yet'}`,
    children: [
      ...reasonNodes(job),
      ...scalingNodes(job),
      ...workloads.map((workload) => ({ text: workloadText(workload) })),
      ...progressNodes(job),
      ...attempts(pods, job.status?.attempt ?? 0),
      ...(quantizeJob
        ? [
            {
              text: `QuantizeJob ${quantizeJob.metadata.name}  ${quantizeJob.status?.phase ?? 'Pending'}`,
              children: [...reasonNodes(quantizeJob), ...quantizerPods.map(podNode)],
            },
          ]
        : []),
      ...(job.status?.artifact ? [{ text: `artifact ${job.status.artifact.uri}` }] : []),
      ...warningNodes(warnings),
    ],
  };
  return { json: { job, pods, workloads, quantizeJob, quantizerPods, warnings }, text: draw(tree) };
}

/** A QuantizeJob as a tree. Progress is in the metrics of its pod alone. */
async function quantizationStatus(cluster: Cluster, job: QuantizeJob): Promise<Outcome> {
  const { uid, name } = job.metadata;
  const [pods, workloads, warnings] = await Promise.all([
    cluster.pods(uid),
    job.spec.queue === undefined ? [] : cluster.workloads(uid),
    cluster.warnings(uid),
  ]);
  const tree: Node = {
    text: `QuantizeJob ${name}  ${job.status?.phase ?? 'not seen by the operator yet'}`,
    children: [
      ...reasonNodes(job),
      ...workloads.map((workload) => ({ text: workloadText(workload) })),
      ...restartNodes(job),
      ...attempts(pods, job.status?.attempt ?? 0),
      ...(job.status?.artifact ? [{ text: `artifact ${job.status.artifact.uri}` }] : []),
      ...warningNodes(warnings),
    ],
  };
  return { json: { job, pods, workloads, warnings }, text: draw(tree) };
}

/** All jobs of the namespace, a line each: FaceTrainJobs, then the QuantizeJobs that no training has made. */
export async function topJobs(cluster: Cluster): Promise<Outcome> {
  const [jobs, all] = await Promise.all([cluster.jobs(), cluster.quantizeJobs()]);
  const quantizeJobs = all.filter(({ metadata }) => controllerOf({ metadata }) === undefined);
  const header = ['NAME', 'PHASE', 'READY', 'STEP', 'DONE', 'IMAGES/S', 'LOSS', 'LEFT', 'RESTARTS', 'WHY'];
  const rows = jobs.map((job): string[] => {
    const { phase = '', trainers, progress, restarts } = job.status ?? {};
    const ready = readyOf(job);
    return [
      job.metadata.name,
      phase,
      trainers ? `${trainers.ready}/${trainers.desired}` : '',
      progress ? `${progress.step}/${progress.totalSteps}` : '',
      progress ? `${progress.percent} %` : '',
      progress?.imagesPerSecond === undefined ? '' : progress.imagesPerSecond.toFixed(0),
      progress?.loss === undefined ? '' : progress.loss.toFixed(2),
      progress?.estimatedCompletionTime === undefined ? '' : timeLeft(progress.estimatedCompletionTime),
      String((restarts?.count ?? 0) + (restarts?.disruptions ?? 0)),
      ready?.status === 'False' ? `${ready.reason}: ${ready.message}` : '',
    ];
  });
  const quantizations = quantizeJobs.map((job) => {
    const { phase = '', restarts } = job.status ?? {};
    const ready = readyOf(job);
    return [
      job.metadata.name,
      phase,
      String((restarts?.count ?? 0) + (restarts?.disruptions ?? 0)),
      ready?.status === 'False' ? `${ready.reason}: ${ready.message}` : '',
    ];
  });
  const tables = [
    jobs.length === 0 ? `no FaceTrainJob in namespace ${cluster.namespace}\n` : columns([header, ...rows]),
    ...(quantizations.length > 0 ? [columns([['QUANTIZEJOB', 'PHASE', 'RESTARTS', 'WHY'], ...quantizations])] : []),
  ];
  return { json: { jobs, quantizeJobs }, text: tables.join('\n') };
}

const timeLeft = (time: string): string => duration(Math.max(0, (Date.parse(time) - Date.now()) / 1000));

/** Why a job waits, or what ended it: the words of its condition Ready. */
function reasonNodes(job: Parameters<typeof readyOf>[0]): Node[] {
  const ready = readyOf(job);
  if (!ready) return [{ text: 'waits for the operator' }];
  const words = `${ready.reason}: ${ready.message}`;
  return [{ text: ready.status === 'False' ? `not ready: ${words}` : words }];
}

/** Of an elastic job: how many trainers it has and wishes, when it looks for room, and the last change. */
export function scalingNodes(job: Job, now = new Date()): Node[] {
  const { spec, status } = job;
  const { replicas = 1, elastic } = (spec.trainers ?? {}) as {
    replicas?: number;
    elastic?: { scaleUpSeconds: number };
  };
  const { trainers, scaling, attemptStartTime } = status ?? {};
  if (elastic === undefined || trainers === undefined || isFinished(job)) return [];
  const last = scaling?.history.at(-1);
  const lacks = trainers.desired < replicas && attemptStartTime !== undefined;
  const next = lacks ? nextSearch(elastic, scaling, attemptStartTime) : undefined;
  const search =
    next === undefined
      ? ''
      : next > now
        ? `; looks for more in ${duration((next.getTime() - now.getTime()) / 1000)}`
        : '; looks for more';
  return [
    {
      text: `trainers: ${trainers.desired} of ${replicas} wished${search}`,
      children: last
        ? [
            {
              text:
                `the last of ${scaling!.resizes} changes, ${age(last.time, now)} ago: ` +
                `${last.reason}: ${last.message}`,
            },
          ]
        : [],
    },
  ];
}

/** What Kueue lends by a Workload, or says about it. */
export function workloadText({ metadata, spec, status = {} }: Workload): string {
  const conditionOf = (type: string) => status.conditions?.find((condition) => condition.type === type);
  const isTrue = (type: string) => conditionOf(type)?.status === 'True';
  const wished = (spec.podSets?.[0]?.count ?? 1) - (status.reclaimablePods?.[0]?.count ?? 0);
  const lent = Math.min(wished, status.admission?.podSetAssignments?.[0]?.count ?? wished);
  const of = (count: number) => `${count} ${count === 1 ? 'pod' : 'pods'}`;
  const state =
    spec.active === false
      ? 'deactivated'
      : isTrue('Finished')
        ? 'finished'
        : isTrue('Evicted')
          ? `evicted: ${conditionOf('Evicted')!.message}`
          : isTrue('Admitted')
            ? `has quota for ${of(lent)}`
            : `asks quota for ${of(wished)}: ${conditionOf('QuotaReserved')?.message ?? 'Kueue has not looked at it'}`;
  return `Workload ${metadata.name}  ${state}`;
}

function progressNodes(job: Job): Node[] {
  const { status } = job;
  const { progress, checkpoint } = status ?? {};
  const nodes: Node[] = [];
  if (progress)
    nodes.push({
      text: `${bar(progress)} ${speedAndTime(progress)}`.trimEnd(),
      children: [{ text: `last work ${age(progress.lastHeartbeatTime)} ago` }],
    });
  if (checkpoint) nodes.push({ text: `checkpoint of step ${checkpoint.step}: ${checkpoint.uri}` });
  return [...nodes, ...restartNodes(job)];
}

function restartNodes({ status }: Job | QuantizeJob): Node[] {
  const { restarts } = status ?? {};
  if (!restarts || restarts.count + (restarts.disruptions ?? 0) === 0) return [];
  const counts = `${restarts.count} that count${inPlaceOf(restarts)}, ${restarts.disruptions ?? 0} by others`;
  return [{ text: `restarts: ${counts}; the last: ${restarts.lastReason}: ${restarts.lastMessage}` }];
}

const inPlaceOf = ({ inPlace = 0 }: { inPlace?: number | undefined }): string =>
  inPlace === 0 ? '' : ` (${inPlace} in the same pods)`;

function attempts(pods: Pod[], current: number): Node[] {
  const numbers = [...new Set([current, ...pods.map(attemptOf)])].sort((a, b) => b - a);
  return numbers.map((attempt) => {
    const own = pods.filter((pod) => attemptOf(pod) === attempt);
    return { text: `attempt ${attempt}${own.length === 0 ? ': no pods' : ''}`, children: own.map(podNode) };
  });
}

const podNode = (pod: Pod): Node => ({
  text: [
    `${pod.metadata.name} (${isPlaceholder(pod) ? 'a place for a trainer' : ranksText(pod)})`,
    stateOf(pod),
    pod.spec.nodeName,
  ]
    .filter(Boolean)
    .join('  '),
});

/** What a pod does, and why it does not run, in Kubernetes' words. */
export function stateOf({ metadata, status = {} }: Pod): string {
  const { phase = 'Pending', reason, message, conditions = [], containerStatuses = [] } = status;
  const isReady = conditions.some(({ type, status: value }) => type === 'Ready' && value === 'True');
  const unscheduled = conditions.find(({ type, status: value }) => type === 'PodScheduled' && value === 'False');
  const container = containerStatuses.find(({ name }) => name === 'facetrain');
  const { state } = container ?? {};
  const starts = container ? timesStartedAgain(container) : 0;
  const words = (why: { reason?: string; message?: string }) => [why.reason, why.message].filter(Boolean).join(': ');
  const details = [
    metadata.deletionTimestamp === undefined ? '' : 'being deleted',
    phase === 'Running' ? (isReady ? 'ready' : 'not ready') : '',
    words({ ...(reason && { reason }), ...(message && { message }) }),
    phase === 'Pending' && unscheduled ? words(unscheduled) : '',
    container && isGone(container) ? 'its container is gone' : state?.waiting ? words(state.waiting) : '',
    state?.terminated ? `exit code ${state.terminated.exitCode}` : '',
    starts > 0 ? `started again ${starts === 1 ? 'once' : `${starts} times`}` : '',
  ];
  return [phase, ...details.filter((text) => text !== '')].join(', ');
}

const warningNodes = (warnings: Event[]): Node[] =>
  warnings.length === 0 ? [] : [{ text: 'warnings', children: warnings.slice(-WARNINGS).map(warningNode) }];

const warningNode = (event: Event): Node => ({
  text: `${age(timeOfEvent(event))} ago  ${event.reason}: ${event.message ?? ''}`,
});

const age = (time: string, now = new Date()): string =>
  duration(Math.max(0, (now.getTime() - Date.parse(time)) / 1000));

/** The tree in lines, with branches as in `tree`. */
export function draw({ text, children = [] }: Node, indent = ''): string {
  const lines = children.map((child, index) => {
    const isLast = index === children.length - 1;
    return `${indent}${isLast ? '└─' : '├─'} ${draw(child, `${indent}${isLast ? '   ' : '│  '}`)}`;
  });
  return `${oneLine(text)}\n${lines.join('')}`;
}

/** Rows in columns of equal width, as kubectl prints them. */
export function columns(texts: string[][]): string {
  const rows = texts.map((row) => row.map(oneLine));
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows
    .map(
      (row) =>
        `${row
          .map((cell, i) => cell.padEnd(widths[i]!))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('');
}
