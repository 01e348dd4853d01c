/** What every mode of the program is given: a log, a board that shows progress, and the signal to stop. */
import type { Progress } from '@facetrain/api';
import type { Logger } from 'pino';

export interface ProgressBoard {
  readonly current: Progress;
  /** Shows new values, and counts as activity. */
  update(change: Partial<Omit<Progress, 'schemaVersion' | 'job' | 'activity'>>): void;
  /** Counts as activity, and shows nothing new. */
  tick(): void;
}

export interface Program {
  log: Logger;
  progress: ProgressBoard;
  /** Aborted by SIGTERM (reason: 'SIGTERM') and SIGINT (reason: 'SIGINT'). */
  signal: AbortSignal;
}
