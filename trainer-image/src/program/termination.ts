/** What a failed process leaves behind: an exit code, one line in the log, and the pod's termination message. */
import { existsSync, writeFileSync } from 'node:fs';
import { ExitCode, FacetrainError, type TerminationMessage } from '@facetrain/api';
import type { Logger } from 'pino';

/** Kubernetes makes this file before the container starts; where it is missing nobody will read it. */
const DEFAULT_FILE = '/dev/termination-log';
const LONGEST_MESSAGE = 3500;

/** Reports an error and returns the exit code it stands for. A defect keeps its stack in the log. */
export function reportFailure(error: unknown, log: Logger): ExitCode {
  const refused = error instanceof FacetrainError;
  const message = error instanceof Error ? error.message : String(error);
  if (refused) log.error({ code: error.code }, message);
  else log.fatal({ code: 'Internal', err: error }, message);
  leaveMessage({ code: refused ? error.code : 'Internal', message: message.slice(0, LONGEST_MESSAGE) }, log);
  return refused ? error.exitCode : ExitCode.failure;
}

function leaveMessage(message: TerminationMessage, log: Logger): void {
  const file = process.env['FACETRAIN_TERMINATION_MESSAGE'] ?? DEFAULT_FILE;
  if (file === DEFAULT_FILE && !existsSync(file)) return;
  try {
    writeFileSync(file, JSON.stringify(message));
  } catch (error) {
    log.debug({ file, err: error }, 'termination message not written');
  }
}
