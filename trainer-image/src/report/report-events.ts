/** A training report as events for TensorBoard. Pure. */
import { type Histogram, stepStages, type TrainReport } from '@facetrain/api';
import type { EventHistogram, SummaryEvent } from './event-file.ts';

/**
 * Loss, learning rate, sample rate and throughput of each interval of the history; accuracy, true accept rates and
 * histograms of each evaluation; seconds by stage, at the last step. Times are spread evenly over the steps of the
 * attempt, since the report has none of its own for them.
 */
export function reportEvents(report: TrainReport): SummaryEvent[] {
  const [start, end] = [report.startedAt, report.finishedAt].map((time) => Date.parse(time) / 1000) as [number, number];
  const first = report.resumedFromStep ?? 0;
  const time = (step: number) => start + (end - start) * ((step - first) / Math.max(1, report.steps - first));
  const history = report.history.map(({ step, epoch, loss, learningRate, sampleRate, imagesPerSecond }) => ({
    step,
    time: time(step),
    values: Object.entries({ loss, learningRate, sampleRate, imagesPerSecond, epoch }).flatMap(([name, value]) =>
      value === undefined ? [] : [{ tag: `train/${name}`, value }],
    ),
  }));
  const evaluations = report.evaluations.map(({ set, step, accuracy, tarAtFar, histograms }) => ({
    step,
    time: time(step),
    values: [
      { tag: `accuracy/${set}`, value: accuracy },
      ...Object.entries(tarAtFar).map(([far, tar]) => ({ tag: `tar at far ${far}/${set}`, value: tar })),
      ...Object.entries(histograms ?? {}).map(([name, found]) => ({ tag: `${name}/${set}`, value: toEvent(found) })),
    ],
  }));
  const { stageSeconds } = report;
  const stages = stageSeconds
    ? [
        {
          step: report.steps,
          time: end,
          values: stepStages.map((stage) => ({ tag: `step seconds/${stage}`, value: stageSeconds[stage] })),
        },
      ]
    : [];
  return [...history, ...evaluations, ...stages].toSorted((a, b) => a.step - b.step);
}

function toEvent({ min, max, sum, sumOfSquares, counts }: Histogram): EventHistogram {
  const width = (max - min) / counts.length;
  const count = counts.reduce((all, each) => all + each, 0);
  return { min, max, count, sum, sumOfSquares, limits: counts.map((_, bar) => min + (bar + 1) * width), counts };
}
