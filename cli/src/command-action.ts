/** What all commands share: the result or the error is printed, as text or with `--json`, and decides the exit code. */
import { ExitCode, FacetrainError } from '@facetrain/api';
import type { Command } from 'commander';
import type { Stop } from './stop-signals.ts';

export interface Outcome {
  /** For `--json`. */
  json: unknown;
  /** For people. */
  text: string;
  /** Absent: success. */
  exitCode?: number;
}

/** What `--json` prints in place of a result. */
interface PrintedError {
  code: string;
  message: string;
  subject?: string;
  found?: string;
  allowed?: string;
}

type Body = (...args: never[]) => Promise<Outcome>;

/** @returns a handler for commander's `action` */
export function makeAction(stop: Stop): (body: Body) => (this: Command, ...args: unknown[]) => Promise<void> {
  return (body) =>
    async function (...args) {
      const { json = false } = this.opts<{ json?: boolean }>();
      try {
        const outcome = await body(...(args as never[]));
        await print(json ? `${JSON.stringify(outcome.json)}\n` : outcome.text);
        process.exitCode = outcome.exitCode ?? ExitCode.success;
      } catch (error) {
        process.exitCode = await reportError(error, stop, json);
      }
    };
}

/** @returns the exit code @throws the error, with its stack, when it is a defect */
async function reportError(error: unknown, stop: Stop, json: boolean): Promise<number> {
  if (stop.received) {
    if (json) await printError({ code: 'Stopped', message: `stopped by ${stop.received.name}` });
    return stop.received.exitCode;
  }
  if (!(error instanceof FacetrainError)) {
    if (json) await printError({ code: 'Internal', message: String(error) });
    throw error;
  }
  const { code, subject, found, allowed, message, exitCode } = error;
  process.stderr.write(`${message}\n`);
  if (json) await printError({ code, subject, found, allowed, message });
  return exitCode;
}

export const printError = (error: PrintedError) => print(`${JSON.stringify({ error })}\n`);

const print = (text: string) => new Promise<void>((resolve) => process.stdout.write(text, () => resolve()));
