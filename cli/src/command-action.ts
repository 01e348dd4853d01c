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

/**
 * Makes commander refuse an option that has one value and is given twice: it would take the last, without a word.
 * @param command with its subcommands; to be called when they have all their options
 */
export function refuseRepeatedOptions(command: Command): void {
  for (const option of command.options.filter(({ required, variadic }) => required && !variadic)) {
    let isGiven = false;
    command.on(`option:${option.name()}`, () => {
      if (isGiven) command.error(`error: option '${option.flags}' is given twice; it takes one value`);
      isGiven = true;
    });
  }
  command.commands.forEach(refuseRepeatedOptions);
}

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
  process.stderr.write(`${readable(message)}\n`);
  if (json) await printError({ code, subject, found, allowed, message });
  return exitCode;
}

/** Longest word, and longest message, that are printed whole. */
const LONGEST = { word: 400, message: 8000 };

/**
 * A message for a terminal. Names in it come from files of any origin: they may be a megabyte long, or hold escape
 * sequences.
 */
export function readable(message: string): string {
  const middleOut = (text: string, longest: number) =>
    text.length <= longest
      ? text
      : `${text.slice(0, longest / 2)}…(${text.length} characters)…${text.slice(-longest / 4)}`;
  const words = message.replace(/\S{401,}/g, (word) => middleOut(word, LONGEST.word));
  // Line breaks stay: the problems of a manifest are a list.
  return middleOut(words, LONGEST.message).replace(
    /[\p{Cc}--\n]/gv,
    (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`,
  );
}

export const printError = (error: PrintedError) => print(`${JSON.stringify({ error })}\n`);

const print = (text: string) => new Promise<void>((resolve) => process.stdout.write(text, () => resolve()));
