/** The curves of a training, and its report, as events for TensorBoard. Pure. */
import { type Histogram, stepStages, type TrainReport } from '@facetrain/api';
import type { EventHistogram, SummaryEvent } from './event-file.ts';

export type ReportedCurves = Pick<TrainReport, 'startedAt' | 'attempts' | 'history' | 'evaluations'>;

/** The curves, and the seconds of a step by stage, at the last step. */
export function reportEvents(report: TrainReport): SummaryEvent[] {
  const { stageSeconds, steps, finishedAt } = report;
  if (!stageSeconds) return curveEvents(report);
  const values = stepStages.map((stage) => ({ tag: `step seconds/${stage}`, value: stageSeconds[stage] }));
  return [...curveEvents(report), { step: steps, time: seconds(finishedAt), values }];
}

/**
 * By step: the number of an attempt where it began; loss, learning rate, sample rate and throughput of each interval;
 * accuracy, true accept rates and histograms of each evaluation, at the time of the interval before it.
 */
export function curveEvents({ startedAt, attempts = [], history, evaluations }: ReportedCurves): SummaryEvent[] {
  const began = attempts.map(({ attempt, fromStep, startedAt: time }) => ({
    step: fromStep,
    time: seconds(time),
    values: [{ tag: 'train/attempt', value: attempt }],
  }));
  const intervals = history.map(({ step, time, epoch, loss, learningRate, sampleRate, imagesPerSecond }) => ({
    step,
    time: seconds(time ?? startedAt),
    values: Object.entries({ loss, learningRate, sampleRate, imagesPerSecond, epoch }).flatMap(([name, value]) =>
      value === undefined ? [] : [{ tag: `train/${name}`, value }],
    ),
  }));
  const evaluated = evaluations.map(({ set, step, accuracy, tarAtFar, histograms }) => ({
    step,
    time: intervals.findLast((interval) => interval.step <= step)?.time ?? seconds(startedAt),
    values: [
      { tag: `accuracy/${set}`, value: accuracy },
      ...Object.entries(tarAtFar).map(([far, tar]) => ({ tag: `tar at far ${far}/${set}`, value: tar })),
      ...Object.entries(histograms ?? {}).map(([name, found]) => ({ tag: `${name}/${set}`, value: toEvent(found) })),
    ],
  }));
  return [...began, ...intervals, ...evaluated].toSorted((a, b) => a.step - b.step);
}

/** Since 1970. */
const seconds = (time: string) => Date.parse(time) / 1000;

function toEvent({ min, max, sum, sumOfSquares, counts }: Histogram): EventHistogram {
  const width = (max - min) / counts.length;
  const count = counts.reduce((all, each) => all + each, 0);
  return { min, max, count, sum, sumOfSquares, limits: counts.map((_, bar) => min + (bar + 1) * width), counts };
}
