/** What a process leaves behind when it ends: its pod's termination message, and after a failure an exit code and one line in the log. */
import { existsSync, writeFileSync } from 'node:fs';
import {
  ExitCode,
  FacetrainError,
  MAX_TERMINATION_BYTES,
  MAX_TERMINATION_TEXT,
  type TerminationMessage,
  type TerminationResult,
} from '@facetrain/api';
import type { Logger } from 'pino';

/** Kubernetes makes this file before the container starts; where it is missing nobody will read it. */
const DEFAULT_FILE = '/dev/termination-log';

/** Reports an error and returns the exit code it stands for. A defect keeps its stack in the log. */
export function reportFailure(error: unknown, log: Logger): ExitCode {
  const refused = error instanceof FacetrainError;
  const message = error instanceof Error ? error.message : String(error);
  if (refused) log.error({ code: error.code }, message);
  else log.fatal({ code: 'Internal', err: error }, message);
  leave(fitting({ code: refused ? error.code : 'Internal', message: message.slice(0, MAX_TERMINATION_TEXT) }), log);
  return refused ? error.exitCode : ExitCode.failure;
}

/** Reports what came of a program that ended without an error. */
export function reportResult(result: TerminationResult, log: Logger): void {
  const { progress } = result;
  // Only evaluations can be many, and most of them were seen before.
  leave(fits(result) || !progress ? result : { ...result, progress: { ...progress, evaluations: [] } }, log);
}

const fits = (content: object): boolean => Buffer.byteLength(JSON.stringify(content)) <= MAX_TERMINATION_BYTES;

/** Cut by bytes as JSON counts them: a message that the kubelet cuts is no JSON any more. */
function fitting(failure: TerminationMessage): TerminationMessage {
  let { message } = failure;
  while (!fits({ ...failure, message })) message = message.slice(0, Math.floor(0.9 * message.length));
  return { ...failure, message };
}

function leave(content: TerminationMessage | TerminationResult, log: Logger): void {
  const file = process.env.FACETRAIN_TERMINATION_MESSAGE ?? DEFAULT_FILE;
  if (file === DEFAULT_FILE && !existsSync(file)) return;
  try {
    writeFileSync(file, JSON.stringify(content));
  } catch (error) {
    log.debug({ file, err: error }, 'termination message not written');
  }
}
