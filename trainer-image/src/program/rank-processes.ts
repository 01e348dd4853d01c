/**
 * Several ranks in one container (`trainers.ranksPerPod`): a process for each, started by this one, which trains
 * nothing itself. It passes signals on, writes their logs line by line, and ends when all have ended, as one rank alone
 * would have: with the exit code and the termination message of the rank whose failure ended the others.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { ExitCode } from '@facetrain/api';
import type { Logger } from 'pino';
import { readMessage, reportRankFailure, writeMessage } from './report-termination.ts';
import { stopExitCode } from './stop-signal.ts';

export interface RankProcesses {
  count: number;
  /** The number of the first rank; the others follow. */
  firstRank: number;
  /** Arguments of node: the program, and the mode in which it is one rank. */
  args: string[];
  log: Logger;
  /** Passed on to all ranks, which agree to stop in the same step, after a checkpoint. */
  signal: AbortSignal;
}

/** How a rank ended. */
export interface RankEnd {
  rank: number;
  /** 128 + the number of the signal that ended it, as shells and container runtimes report it. */
  code: number;
  /** null: its program ended it, or the signal that stops all. */
  by: NodeJS.Signals | null;
}

/**
 * After a failure the other ranks get SIGTERM, and after this time SIGKILL: one may wait in a collective, and no
 * checkpoint can be completed without the rank that failed.
 */
const LEAVE_MILLISECONDS = 10_000;

/** Runs the ranks to their end. @returns the exit code of the container */
export async function runRanks(options: RankProcesses): Promise<number> {
  const folder = await mkdtemp(join(tmpdir(), 'ranks-'));
  const messageFile = (rank: number) => join(folder, String(rank));
  try {
    return report(await endsOf(options, messageFile), messageFile, options);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** @returns how the ranks ended, in this order, without those that were killed because another one had failed */
async function endsOf(
  { count, firstRank, args, log, signal }: RankProcesses,
  messageFile: (rank: number) => string,
): Promise<RankEnd[]> {
  const ends: RankEnd[] = [];
  const running = new Set<ChildProcess>();
  const sendAll = (name: NodeJS.Signals) => running.forEach((child) => child.kill(name));
  let killTimer: NodeJS.Timeout | undefined;
  let killed = false;
  const kill = () => {
    killed = true;
    sendAll('SIGKILL');
  };
  const onEnd = (end: RankEnd) => {
    if (killed && end.by === 'SIGKILL') return;
    ends.push(end);
    // One that stops leaves the others to stop as well: they may still write their parts of the checkpoint.
    if (end.code === ExitCode.success || isStop(end) || killTimer) return;
    log.warn({ failedRank: end.rank, exitCode: end.code }, 'a rank failed: the others in this pod are stopped');
    sendAll('SIGTERM');
    killTimer = setTimeout(kill, LEAVE_MILLISECONDS);
  };
  const run = (index: number): Promise<void> => {
    const rank = firstRank + index;
    const env = {
      // OpenMP threads that spin while they wait would take another rank's core.
      OMP_WAIT_POLICY: 'passive',
      ...process.env,
      RANK: String(rank),
      LOCAL_RANK: String(index),
      LOCAL_WORLD_SIZE: String(count),
      FACETRAIN_TERMINATION_MESSAGE: messageFile(rank),
    };
    // A rank stops when its IPC channel closes, so none outlives this process.
    const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'pipe', 'pipe', 'ipc'] });
    running.add(child);
    writeLines(child.stdout!, rank, process.stdout);
    writeLines(child.stderr!, rank, process.stderr);
    return new Promise((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', (code, by) => {
        running.delete(child);
        // A signal that was passed on before the rank could handle it: it has stopped, without anything to save.
        const isStopped = by !== null && by === signal.reason;
        onEnd({ rank, code: code ?? 128 + constants.signals[by!], by: isStopped ? null : by });
      });
      // After 'exit': all that it wrote has been read.
      child.once('close', () => resolve());
    });
  };
  const onStop = () => sendAll(signal.reason as NodeJS.Signals);
  signal.addEventListener('abort', onStop);
  try {
    const all = Array.from({ length: count }, (_, index) => run(index));
    if (signal.aborted) onStop();
    await Promise.all(all);
    return ends;
  } finally {
    signal.removeEventListener('abort', onStop);
    clearTimeout(killTimer);
    // If one could not be started.
    kill();
  }
}

/**
 * The program's own lines are JSON and name the rank. Others, such as NCCL's, get it before them. Only \n ends a line:
 * JSON may hold U+2028, at which node:readline ends one, too.
 */
export function writeLines(from: Readable, rank: number, to: Writable): void {
  let rest = '';
  const write = (line: string) => to.write(line.startsWith('{') ? `${line}\n` : `rank ${rank}: ${line}\n`);
  from.setEncoding('utf8');
  from.on('data', (text: string) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop()!;
    lines.forEach(write);
  });
  from.once('end', () => {
    if (rest !== '') write(rest);
  });
}

const isStop = ({ code, by }: RankEnd): boolean =>
  by === null && (code === ExitCode.preempted || code === ExitCode.interrupted);

/**
 * The rank whose failure ended the others; undefined: none failed. A rank that lost a peer, or that stopped because
 * another one got a signal, ended after the cause, but not always after the process in which the cause was: the order
 * in which planner/src/failure.ts looks at pods.
 *
 * @param ends in the order of time
 */
export function firstFailure(ends: readonly RankEnd[]): RankEnd | undefined {
  const failed = ends.filter((end) => end.code !== ExitCode.success && !isStop(end));
  return failed.find(({ code }) => code !== ExitCode.peerLost) ?? failed[0];
}

function report(
  ends: readonly RankEnd[],
  messageFile: (rank: number) => string,
  { firstRank, log, signal }: RankProcesses,
): number {
  const failure = firstFailure(ends);
  if (failure) {
    reportRankFailure(failure, readMessage(messageFile(failure.rank)), log);
    return failure.code;
  }
  // That of rank 0 has the progress at its end.
  const result = readMessage(messageFile(firstRank));
  if (result !== undefined) writeMessage(result, log);
  return ends.some((end) => isStop(end)) ? stopExitCode(signal) : ExitCode.success;
}
