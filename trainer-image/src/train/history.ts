/** Statistics of the steps done: means for the report, recent loss and speed for the progress board. Pure. */
import { type CheckpointManifest, type StageSeconds, stepStages, type TrainReport } from '@facetrain/api';

/** In a report. */
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
  sampleRate: number;
  seconds: number;
  /** Of this rank; null when none was measured. With CUDA of an earlier step. */
  stageSeconds: StageSeconds | null;
}

export class History {
  #totalSteps: number;
  #stepsPerEpoch: number;
  #batch: number;
  #intervalSteps: number;
  /** Steps of the interval that has not ended. */
  #interval: StepRecord[] = [];
  #intervals: TrainReport['history'] = [];
  #recent: StepRecord[] = [];
  #losses: number[];
  #lossFirst: number | null;
  /** Seconds of earlier attempts; then seconds and steps of this one. */
  #secondsBefore: number;
  #seconds = 0;
  #steps = 0;
  /** Of this attempt. */
  #measured = 0;
  #stageTotals = new Map<keyof StageSeconds, number>();

  /** @param earlier the history of earlier attempts, from the checkpoint */
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
    if (record.stageSeconds !== null) {
      this.#measured += 1;
      for (const stage of stepStages)
        this.#stageTotals.set(stage, (this.#stageTotals.get(stage) ?? 0) + record.stageSeconds[stage]);
    }
    this.#lossFirst ??= record.loss;
    this.#losses = [...this.#losses, record.loss].slice(-Math.min(RECENT_LOSSES, this.#stepsPerEpoch));
    this.#recent = [...this.#recent, record].slice(-RECENT_STEPS);
    this.#interval.push(record);
    // Intervals end at multiples of their length, so a resumed attempt has the same ones.
    if ((record.step + 1) % this.#intervalSteps === 0 || record.step + 1 === this.#totalSteps) this.#closeInterval();
  }

  /** What the next attempt needs of this one. */
  get forCheckpoint(): CheckpointManifest['history'] {
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

  /** Over this attempt; 0 when it did no step. */
  get imagesPerSecond(): number {
    return this.#seconds === 0 ? 0 : (this.#steps * this.#batch) / this.#seconds;
  }

  /** Of a step, the mean over the last steps; null before the first. */
  get recentStageSeconds(): StageSeconds | null {
    const measured = this.#recent.flatMap(({ stageSeconds }) => stageSeconds ?? []);
    return measured.length === 0 ? null : stagesBy((stage) => mean(measured.map((seconds) => seconds[stage])));
  }

  /** Of a step, the mean over this attempt; null when it did no step. */
  get stageSeconds(): StageSeconds | null {
    return this.#measured === 0 ? null : stagesBy((stage) => this.#stageTotals.get(stage)! / this.#measured);
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
    const meanOf = (read: (record: StepRecord) => number) => mean(this.#interval.map(read));
    const step = this.#interval.at(-1)!.step + 1;
    this.#intervals.push({
      step,
      epoch: step / this.#stepsPerEpoch,
      loss: meanOf((record) => record.loss),
      learningRate: meanOf((record) => record.learningRate),
      sampleRate: meanOf((record) => record.sampleRate),
      imagesPerSecond: this.#batch / meanOf((record) => record.seconds),
    });
    this.#interval = [];
  }
}

/** In whole microseconds. */
function stagesBy(seconds: (stage: keyof StageSeconds) => number): StageSeconds {
  return Object.fromEntries(stepStages.map((stage) => [stage, Number(seconds(stage).toFixed(6))])) as StageSeconds;
}

function mean(values: number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
