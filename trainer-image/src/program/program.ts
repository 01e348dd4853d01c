/** What every mode of the program gets: a log, the progress board and the stop signal. */
import type { Progress, ProgressStage, StageSeconds } from '@facetrain/api';
import type { Logger } from 'pino';

/** What a program says about itself; the stage is one of this release. */
export type ProgressChange = Omit<Progress, 'schemaVersion' | 'job' | 'activity' | 'stage'> & { stage: ProgressStage };

export interface ProgressBoard {
  readonly current: Progress;
  /** Changes values, and counts as activity. */
  update(change: Partial<ProgressChange>): void;
  /** Counts as activity without a change of values. */
  tick(): void;
  /** Adds the times of one step to the counters of the metrics. */
  addStep(stages: StageSeconds): void;
}

export interface Program {
  log: Logger;
  progress: ProgressBoard;
  /** Aborted by SIGTERM (reason: 'SIGTERM') and SIGINT (reason: 'SIGINT'). */
  signal: AbortSignal;
}
