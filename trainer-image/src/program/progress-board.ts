/** The progress board: one current value, and when it last moved. The server shows it; the modes write it. */
import type { Progress } from '@facetrain/api';
import type { ProgressBoard } from './program.ts';

export interface Board extends ProgressBoard {
  /** Milliseconds since the last activity. */
  idleMs(): number;
}

/** @param now milliseconds of any monotonic clock */
export function createBoard(
  job: Progress['job'],
  stage: Progress['stage'],
  now: () => number = () => performance.now(),
): Board {
  let moved = now();
  const board = {
    current: {
      schemaVersion: 1,
      job,
      stage,
      step: 0,
      totalSteps: 0,
      epoch: 0,
      imagesPerSecond: null,
      loss: null,
      learningRate: null,
      etaSeconds: null,
      evaluations: [],
      checkpoint: null,
      activity: 0,
    } as Progress,
    update(change: Parameters<ProgressBoard['update']>[0]) {
      board.current = { ...board.current, ...change };
      board.tick();
    },
    tick() {
      board.current = { ...board.current, activity: board.current.activity + 1 };
      moved = now();
    },
    idleMs: () => now() - moved,
  };
  return board;
}
