/**
 * Statistics of the steps done, over all attempts: curves and means for the report, recent loss and speed for the
 * progress board. Pure.
 */
import {
  type AttemptMark,
  type CheckpointManifest,
  type CurveInterval,
  type Curves,
  MOST_CURVE_POINTS,
  type StageSeconds,
  stepStages,
  type TrainReport,
} from '@facetrain/api';

/** Attempts that curves name. */
const MOST_ATTEMPTS = 200;
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
  /** When it ended. */
  time: Date;
}

/** What is known of the steps before this attempt: those of the state that it goes on from. */
export interface EarlierSteps {
  /** Steps done. */
  step: number;
  history: CheckpointManifest['history'];
  /** Undefined: a version of before did not record them. */
  curves?: Pick<Curves, 'attempts' | 'intervals'> | undefined;
}

/** Of the training. */
interface Size {
  totalSteps: number;
  stepsPerEpoch: number;
  globalBatchSize: number;
}

export class History {
  readonly #size: Size;
  readonly #intervalSteps: number;
  readonly #attempts: AttemptMark[];
  #intervals: CurveInterval[] = [];
  #recent: StepRecord[] = [];
  #losses: number[];
  #lossFirst: number | null;
  #steps: number;
  #seconds: number;
  /** Steps whose stages were measured. */
  #measured: number;
  #stageTotals: StageSeconds;

  /** @param attempt that does the steps from now on */
  constructor(size: Size, attempt: Omit<AttemptMark, 'fromStep'>, earlier?: EarlierSteps) {
    const { step = 0, history, curves } = earlier ?? {};
    this.#size = size;
    this.#intervalSteps = Math.ceil(size.totalSteps / MOST_CURVE_POINTS);
    // Of others that began here, no step is left.
    const before = curves?.attempts.filter(({ fromStep }) => fromStep < step) ?? [];
    this.#attempts = [...before, { ...attempt, fromStep: step }].slice(-MOST_ATTEMPTS);
    // The training may have another number of steps than it had then.
    for (const interval of curves?.intervals ?? []) this.#addInterval(interval);
    this.#losses = [...(history?.recentLosses ?? [])];
    this.#lossFirst = history?.lossFirst ?? null;
    this.#steps = step;
    this.#seconds = history?.trainSeconds ?? 0;
    this.#measured = history?.stages?.steps ?? 0;
    this.#stageTotals = stagesBy((stage) => this.#measured * (history?.stages?.seconds[stage] ?? 0));
  }

  add({ time, ...record }: StepRecord): void {
    const { loss, learningRate, sampleRate, seconds, stageSeconds } = record;
    this.#steps += 1;
    this.#seconds += seconds;
    if (stageSeconds !== null) {
      this.#measured += 1;
      this.#stageTotals = stagesBy((stage) => this.#stageTotals[stage] + stageSeconds[stage]);
    }
    this.#lossFirst ??= loss;
    this.#losses = [...this.#losses, loss].slice(-Math.min(RECENT_LOSSES, this.#size.stepsPerEpoch));
    this.#recent = [...this.#recent, { ...record, time }].slice(-RECENT_STEPS);
    const step = record.step + 1;
    this.#addInterval({ step, steps: 1, time: time.toISOString(), loss, learningRate, sampleRate, seconds });
  }

  /** What the next attempt needs of this one. */
  get forCheckpoint(): CheckpointManifest['history'] {
    return {
      lossFirst: this.#lossFirst,
      trainSeconds: this.#seconds,
      recentLosses: this.#losses,
      ...(this.#measured > 0 && {
        stages: { steps: this.#measured, seconds: stagesBy((stage) => this.#stageTotals[stage] / this.#measured) },
      }),
    };
  }

  /** The same for its curves. */
  get curves(): Pick<Curves, 'attempts' | 'intervals'> {
    return { attempts: [...this.#attempts], intervals: [...this.#intervals] };
  }

  /** The newest interval, which may go on; null before the first step. */
  get interval(): CurveInterval | null {
    return this.#intervals.at(-1) ?? null;
  }

  /** Whether the newest interval goes on. */
  get isIntervalOpen(): boolean {
    const { step = 0 } = this.interval ?? {};
    return step % this.#intervalSteps !== 0 && step !== this.#size.totalSteps;
  }

  get lossFirst(): number | null {
    return this.#lossFirst;
  }

  /** Mean over the last steps of an epoch's length, at most 50; null before the first. */
  get lossLast(): number | null {
    return this.#losses.length === 0 ? null : mean(this.#losses);
  }

  get trainSeconds(): number {
    return this.#seconds;
  }

  /** Over the last steps of this attempt; null before the first. */
  get recentImagesPerSecond(): number | null {
    return this.#recent.length === 0
      ? null
      : this.#size.globalBatchSize / mean(this.#recent.map((record) => record.seconds));
  }

  /** 0 before the first step. */
  get imagesPerSecond(): number {
    return this.#imagesPerSecond(this.#steps, this.#seconds);
  }

  /** Of a step, the mean over the last steps; null before the first. */
  get recentStageSeconds(): StageSeconds | null {
    const measured = this.#recent.flatMap(({ stageSeconds }) => stageSeconds ?? []);
    return measured.length === 0
      ? null
      : inMicroseconds(stagesBy((stage) => mean(measured.map((seconds) => seconds[stage]))));
  }

  /** Of a step, the mean; null when none was measured. */
  get stageSeconds(): StageSeconds | null {
    return this.#measured === 0 ? null : inMicroseconds(stagesBy((stage) => this.#stageTotals[stage] / this.#measured));
  }

  etaSeconds(done: number): number | null {
    const speed = this.recentImagesPerSecond;
    return speed === null ? null : ((this.#size.totalSteps - done) * this.#size.globalBatchSize) / speed;
  }

  /** The curves as a report has them. */
  get intervals(): TrainReport['history'] {
    return this.#intervals.map(({ step, steps, time, loss, learningRate, sampleRate, seconds }) => ({
      step,
      steps,
      time,
      epoch: step / this.#size.stepsPerEpoch,
      loss,
      learningRate,
      sampleRate,
      imagesPerSecond: this.#imagesPerSecond(steps, seconds),
    }));
  }

  #imagesPerSecond(steps: number, seconds: number): number {
    return seconds === 0 ? 0 : (steps * this.#size.globalBatchSize) / seconds;
  }

  /** Intervals end at the multiples of their length, so all attempts have the same ones. */
  #addInterval(added: CurveInterval): void {
    const last = this.#intervals.at(-1);
    const number = (step: number) => Math.ceil(step / this.#intervalSteps);
    if (last && number(last.step) === number(added.step))
      this.#intervals[this.#intervals.length - 1] = joined(last, added);
    else this.#intervals.push(added);
  }
}

/** An interval and the one after it as one. */
function joined(first: CurveInterval, second: CurveInterval): CurveInterval {
  const steps = first.steps + second.steps;
  const meanOf = (field: 'loss' | 'learningRate' | 'sampleRate') =>
    (first.steps * first[field] + second.steps * second[field]) / steps;
  return {
    step: second.step,
    steps,
    time: second.time,
    loss: meanOf('loss'),
    learningRate: meanOf('learningRate'),
    sampleRate: meanOf('sampleRate'),
    seconds: first.seconds + second.seconds,
  };
}

function stagesBy(seconds: (stage: keyof StageSeconds) => number): StageSeconds {
  return Object.fromEntries(stepStages.map((stage) => [stage, seconds(stage)])) as StageSeconds;
}

const inMicroseconds = (seconds: StageSeconds) => stagesBy((stage) => Number(seconds[stage].toFixed(6)));

function mean(values: number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
