// Long steps that a person can follow: on a terminal one line that keeps changing, elsewhere plain lines. Everything goes
// to standard error. Runs before anything is installed, on Node 20, so it may use nothing but Node itself.
import { spawn } from 'node:child_process';

const terminal = process.stderr.isTTY === true;
const TICK = 200; // ms between repaints
const HEARTBEAT = 20_000; // ms between plain lines of a step that takes long

/** A failure whose message is all that a person needs; no stack is shown. */
export class SetupError extends Error {}

const elapsed = (since) => `${Math.round((Date.now() - since) / 1000)} s`;

function fit(line) {
  const width = (process.stderr.columns ?? 80) - 1;
  return line.length > width ? `${line.slice(0, width - 1)}…` : line;
}

/**
 * Runs `work`, which is given a function that shows what is happening right now.
 * @template T
 * @param {string} title
 * @param {(show: (detail: string) => void) => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function step(title, work) {
  const start = Date.now();
  let detail = '';
  let painted = 0;
  const paint = () => {
    const line = `${title}: ${elapsed(start)}${detail && `, ${detail}`}`;
    if (terminal) process.stderr.write(`\r\x1b[K${fit(line)}`);
    else if (Date.now() - painted >= HEARTBEAT) {
      painted = Date.now();
      process.stderr.write(`${line}\n`);
    }
  };
  if (!terminal) process.stderr.write(`${title} …\n`);
  painted = Date.now();
  const timer = setInterval(paint, TICK);
  try {
    const result = await work((text) => {
      detail = text;
    });
    process.stderr.write(`${terminal ? '\r\x1b[K' : ''}${title}: done in ${elapsed(start)}\n`);
    return result;
  } catch (error) {
    process.stderr.write(`${terminal ? '\r\x1b[K' : ''}${title}: failed after ${elapsed(start)}\n`);
    throw error;
  } finally {
    clearInterval(timer);
  }
}

/**
 * Runs a program to its end; its last line of output is shown, and all of the end when it fails.
 * @param {string[]} command
 * @param {{ show?: (detail: string) => void, cwd?: string, env?: Record<string, string> }} [options]
 * @returns {Promise<string>} its standard output
 */
export function run(command, { show = () => {}, cwd, env } = {}) {
  return new Promise((resolve, reject) => {
    const [program, ...args] = command;
    const child = spawn(program, args, { cwd, env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
    let out = '';
    let tail = '';
    const keep = (chunk) => {
      tail = (tail + chunk).slice(-6000);
      const last = tail
        .trimEnd()
        .split(/[\r\n]/)
        .at(-1)
        ?.trim();
      if (last) show(last);
    };
    child.stdout.setEncoding('utf8').on('data', (chunk) => {
      out += chunk;
      keep(chunk);
    });
    child.stderr.setEncoding('utf8').on('data', keep);
    child.on('error', (error) => reject(new SetupError(`${program} cannot be started: ${error.message}`)));
    child.on('close', (code, signal) => {
      if (code === 0) resolve(out);
      else
        reject(
          new SetupError(`${tail.trimEnd()}\n\n"${command.join(' ')}" ended with ${signal ?? `exit code ${code}`}`),
        );
    });
  });
}

/** Runs a program on this terminal; resolves to its exit code (128 + n after signal n). */
export function attached(command, { cwd, env } = {}) {
  return new Promise((resolve, reject) => {
    const [program, ...args] = command;
    const child = spawn(program, args, { cwd, env: { ...process.env, ...env }, stdio: 'inherit' });
    // The terminal sends Ctrl-C to the child as well: this process waits for how it ends. SIGTERM it must pass on itself.
    const ignore = () => {};
    const pass = () => child.kill('SIGTERM');
    process.on('SIGINT', ignore).on('SIGTERM', pass);
    child.on('error', (error) => reject(new SetupError(`${program} cannot be started: ${error.message}`)));
    child.on('close', (code, signal) => {
      process.off('SIGINT', ignore).off('SIGTERM', pass);
      resolve(code ?? { SIGINT: 130, SIGKILL: 137, SIGSEGV: 139, SIGTERM: 143 }[signal] ?? 1);
    });
  });
}

/** The last lines of a script: a SetupError is printed as it is, anything else with its stack; both exit with 1. */
export async function main(body) {
  try {
    process.exitCode = (await body()) ?? 0;
  } catch (error) {
    process.stderr.write(`\n${error instanceof SetupError ? error.message : error.stack}\n`);
    process.exitCode = 1;
  }
}
