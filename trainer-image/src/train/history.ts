/** What happened in the steps so far: means for the report, the recent loss and speed for people who watch. Pure. */
import type { CheckpointManifest, TrainReport } from '@facetrain/api';

const MOST_INTERVALS = 1000;
/** Steps over which `lossLast` is a mean, unless an epoch is shorter. */
const RECENT_LOSSES = 50;
/** Steps over which speed is measured. */
const RECENT_STEPS = 20;

export interface StepRecord {
  /** From 0. */
  step: number;
  loss: number;
  learningRate: number;
  seconds: number;
}

export class History {
  #totalSteps: number;
  #stepsPerEpoch: number;
  #batch: number;
  #intervalSteps: number;
  #open: StepRecord[] = [];
  #intervals: TrainReport['history'] = [];
  #recent: StepRecord[] = [];
  #losses: number[];
  #lossFirst: number | null;
  #secondsBefore: number;
  #seconds = 0;
  #steps = 0;

  /** @param earlier what a checkpoint says of the attempts before this one */
  constructor(
    totalSteps: number,
    stepsPerEpoch: number,
    globalBatchSize: number,
    earlier?: CheckpointManifest['history'],
  ) {
    this.#totalSteps = totalSteps;
    this.#stepsPerEpoch = stepsPerEpoch;
    this.#batch = globalBatchSize;
    this.#intervalSteps = Math.ceil(totalSteps / MOST_INTERVALS);
    this.#losses = [...(earlier?.recentLosses ?? [])];
    this.#lossFirst = earlier?.lossFirst ?? null;
    this.#secondsBefore = earlier?.trainSeconds ?? 0;
  }

  add(record: StepRecord): void {
    this.#steps += 1;
    this.#seconds += record.seconds;
    this.#lossFirst ??= record.loss;
    this.#losses = [...this.#losses, record.loss].slice(-Math.min(RECENT_LOSSES, this.#stepsPerEpoch));
    this.#recent = [...this.#recent, record].slice(-RECENT_STEPS);
    this.#open.push(record);
    // Intervals end at multiples, so that a resumed attempt reports on the same ones.
    if ((record.step + 1) % this.#intervalSteps === 0 || record.step + 1 === this.#totalSteps) this.#closeInterval();
  }

  /** What the next attempt needs to know. */
  get carried(): CheckpointManifest['history'] {
    return { lossFirst: this.#lossFirst, trainSeconds: this.trainSeconds, recentLosses: this.#losses };
  }

  get lossFirst(): number | null {
    return this.#lossFirst;
  }

  /** Mean over the last steps of an epoch's length, at most 50; null before the first. */
  get lossLast(): number | null {
    return this.#losses.length === 0 ? null : mean(this.#losses);
  }

  /** Over all attempts. */
  get trainSeconds(): number {
    return this.#secondsBefore + this.#seconds;
  }

  /** Over the last steps; null before the first. */
  get recentImagesPerSecond(): number | null {
    return this.#recent.length === 0 ? null : this.#batch / mean(this.#recent.map((record) => record.seconds));
  }

  /** Over this attempt; 0 when it made no step. */
  get imagesPerSecond(): number {
    return this.#seconds === 0 ? 0 : (this.#steps * this.#batch) / this.#seconds;
  }

  etaSeconds(done: number): number | null {
    const speed = this.recentImagesPerSecond;
    return speed === null ? null : ((this.#totalSteps - done) * this.#batch) / speed;
  }

  /** Means over at most 1,000 intervals of this attempt. */
  get intervals(): TrainReport['history'] {
    return this.#intervals;
  }

  #closeInterval(): void {
    const of = (read: (record: StepRecord) => number) => mean(this.#open.map(read));
    const step = this.#open.at(-1)!.step + 1;
    this.#intervals.push({
      step,
      epoch: step / this.#stepsPerEpoch,
      loss: of((record) => record.loss),
      learningRate: of((record) => record.learningRate),
      imagesPerSecond: this.#batch / of((record) => record.seconds),
    });
    this.#open = [];
  }
}

function mean(values: number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
