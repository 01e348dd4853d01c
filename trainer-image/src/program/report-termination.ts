/**
 * Reports how a process ends: in its pod's termination message and, after a failure, by an exit code and a line in the
 * log.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { freemem } from 'node:os';
import process from 'node:process';
import {
  ExitCode,
  FacetrainError,
  MAX_TERMINATION_BYTES,
  MAX_TERMINATION_TEXT,
  TerminationMessage,
  type TerminationResult,
} from '@facetrain/api';
import type { Logger } from 'pino';

/** The kubelet makes this file before the container starts. Outside of a pod it does not exist, and is not written. */
const DEFAULT_FILE = '/dev/termination-log';

/** Reports an error and returns its exit code. The stack of a defect is in the log. */
export function reportFailure(thrown: unknown, log: Logger): ExitCode {
  const error = isFailedAllocation(thrown) ? insufficientMemory(thrown) : thrown;
  const refused = error instanceof FacetrainError;
  const message = error instanceof Error ? error.message : String(error);
  if (refused) log.error({ code: error.code }, message);
  else log.fatal({ code: 'Internal', err: error }, message);
  const code = refused ? error.code : 'Internal';
  writeMessage(shortened({ code, message: message.slice(0, MAX_TERMINATION_TEXT) }), log);
  return refused ? error.exitCode : ExitCode.failure;
}

/** V8 and Node throw these for an ArrayBuffer or a Buffer. A failure in the native code comes with its own code. */
const isFailedAllocation = (error: unknown): error is Error =>
  error instanceof Error &&
  (/^Array buffer allocation failed/.test(error.message) ||
    ('code' in error && error.code === 'ERR_MEMORY_ALLOCATION_FAILED'));

/** What the container's limit leaves, or the machine has, in bytes. Node's own number has the limit alone, if any. */
const availableMemory = () => Math.min(process.availableMemory(), freemem());

const insufficientMemory = (cause: Error) =>
  new FacetrainError({
    code: 'InsufficientMemory',
    subject: 'memory of this process',
    found: `${cause.message}; ${availableMemory()} bytes are available`,
    allowed: 'more memory (in Kubernetes, resources.limits.memory)',
    cause,
  });

/** Reports the result of a program that ended without an error. */
export function reportResult(result: TerminationResult, log: Logger): void {
  const { progress } = result;
  // Only lists can grow, and the progress server has already served most of what is in them.
  const withoutLists = progress && { ...result, progress: { ...progress, evaluations: [], setAside: undefined } };
  writeMessage(fits(result) || !withoutLists ? result : withoutLists, log);
}

const fits = (content: object): boolean => Buffer.byteLength(JSON.stringify(content)) <= MAX_TERMINATION_BYTES;

/** Cuts the text until its JSON fits: a message that the kubelet cut would not be JSON any more. */
function shortened(failure: TerminationMessage): TerminationMessage {
  let { message } = failure;
  while (!fits({ ...failure, message })) message = message.slice(0, Math.floor(0.9 * message.length));
  return { ...failure, message };
}

/**
 * Reports the failure of one of several ranks in this container.
 * @param content of its termination message; undefined if it wrote none
 */
export function reportRankFailure(
  { rank, code, by }: { rank: number; code: number; by: NodeJS.Signals | null },
  content: unknown,
  log: Logger,
): void {
  const written = TerminationMessage.safeParse(content).data;
  // The words of planner/src/reasons.ts for a container of which nothing else is known.
  const unexplained =
    by === null
      ? { code: 'ProcessFailed', message: `its process left with exit code ${code} and no message` }
      : { code: 'ProcessKilled', message: `its process was ended by ${by}` };
  writeMessage(shortened({ ...(written ?? unexplained), rank }), log);
}

/** Content of a termination message; undefined if there is none. */
export function readMessage(file: string): object | undefined {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as object;
  } catch {
    return undefined;
  }
}

export function writeMessage(content: object, log: Logger): void {
  const file = process.env.FACETRAIN_TERMINATION_MESSAGE ?? DEFAULT_FILE;
  if (file === DEFAULT_FILE && !existsSync(file)) return;
  try {
    writeFileSync(file, JSON.stringify(content));
  } catch (error) {
    log.debug({ file, err: error }, 'termination message not written');
  }
}
