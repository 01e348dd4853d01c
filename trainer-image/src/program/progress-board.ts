/** The progress board: the current Progress, and the time of the last activity. Modes write it, the server reads it. */
import { type Progress, type ProgressStage, progressAtStart, type StageSeconds, stepStages } from '@facetrain/api';
import type { ProgressBoard } from './program.ts';

export interface Board extends ProgressBoard {
  /** Milliseconds since the last activity. */
  idleMs(): number;
  /** Sums over the steps of this process; null before the first. */
  readonly stageSecondsTotal: Readonly<StageSeconds> | null;
}

/** @param now a monotonic clock, in milliseconds */
export function createBoard(
  job: Progress['job'],
  stage: ProgressStage,
  now: () => number = () => performance.now(),
): Board {
  let lastActivity = now();
  const board = {
    current: progressAtStart(job, stage),
    update(change: Parameters<ProgressBoard['update']>[0]) {
      board.current = { ...board.current, ...change };
      board.tick();
    },
    tick() {
      board.current = { ...board.current, activity: board.current.activity + 1 };
      lastActivity = now();
    },
    stageSecondsTotal: null as StageSeconds | null,
    addStep(stages: StageSeconds) {
      const total = { ...(board.stageSecondsTotal ?? stages) };
      if (board.stageSecondsTotal) for (const stage of stepStages) total[stage] += stages[stage];
      board.stageSecondsTotal = total;
    },
    idleMs: () => now() - lastActivity,
  };
  return board;
}
