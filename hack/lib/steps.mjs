// Long steps with their progress: on a terminal one line that is rewritten, elsewhere plain lines. All output goes to
// standard error. This runs on Node 20 before any package is installed, so it may import only Node's own modules.
import { spawn } from 'node:child_process';

const terminal = process.stderr.isTTY === true;
const TICK = 200; // ms between repaints
const FIRST_LINE = 3000; // ms until a step writes its first plain line: a short one writes only its result
const HEARTBEAT = 20_000; // ms between plain lines of a long step

/** A failure whose message needs no stack: `main` prints only the message. */
export class SetupError extends Error {}

/** A command for a message: without the end of a long list of files. */
const shortened = (command) => (command.length > 12 ? [...command.slice(0, 12), '...'] : command).join(' ');

const elapsed = (since) => `${Math.round((Date.now() - since) / 1000)} s`;

function fit(line) {
  const width = (process.stderr.columns ?? 80) - 1;
  return line.length > width ? `${line.slice(0, width - 1)}…` : line;
}

/**
 * Runs `work` and reports how long it took. `work` calls `show` with what it is doing.
 * @template T
 * @param {string} title
 * @param {(show: (detail: string) => void) => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function step(title, work) {
  const start = Date.now();
  let detail = '';
  let next = start + FIRST_LINE;
  const paint = () => {
    const line = `${title}: ${elapsed(start)}${detail && `, ${detail}`}`;
    if (terminal) process.stderr.write(`\r\x1b[K${fit(line)}`);
    else if (Date.now() >= next) {
      next = Date.now() + HEARTBEAT;
      process.stderr.write(`${line}\n`);
    }
  };
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
 * Runs a program to its end, and shows the newest line of its output.
 * @param {string[]} command
 * @param {{ show?: (detail: string) => void, cwd?: string, env?: Record<string, string>, tail?: number }} [options]
 *   `tail`: how many characters of its output the error has, where it fails
 * @returns {Promise<string>} its standard output
 * @throws SetupError when it cannot be started or fails
 */
export function run(command, { show = () => {}, cwd, env, tail: kept = 6000 } = {}) {
  return new Promise((resolve, reject) => {
    const [program, ...args] = command;
    const child = spawn(program, args, { cwd, env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
    let out = '';
    let tail = '';
    const keep = (chunk) => {
      tail = (tail + chunk).slice(-kept);
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
          new SetupError(`${tail.trimEnd()}\n\n"${shortened(command)}" ended with ${signal ?? `exit code ${code}`}`),
        );
    });
  });
}

/** Runs a program on this terminal; resolves to its exit code (128 + n after signal n). */
export function attached(command, { cwd, env } = {}) {
  return new Promise((resolve, reject) => {
    const [program, ...args] = command;
    const child = spawn(program, args, { cwd, env: { ...process.env, ...env }, stdio: 'inherit' });
    // A terminal sends SIGINT to the child too, so this process only waits. SIGTERM comes to this process alone.
    const ignore = () => {};
    const forward = () => child.kill('SIGTERM');
    process.on('SIGINT', ignore).on('SIGTERM', forward);
    child.on('error', (error) => reject(new SetupError(`${program} cannot be started: ${error.message}`)));
    child.on('close', (code, signal) => {
      process.off('SIGINT', ignore).off('SIGTERM', forward);
      resolve(code ?? { SIGINT: 130, SIGKILL: 137, SIGSEGV: 139, SIGTERM: 143 }[signal] ?? 1);
    });
  });
}

/** Runs a script's body, which returns the exit code; 1 after an error. A SetupError is printed without its stack. */
export async function main(body) {
  try {
    process.exitCode = (await body()) ?? 0;
  } catch (error) {
    process.stderr.write(`\n${error instanceof SetupError ? error.message : error.stack}\n`);
    process.exitCode = 1;
  }
}
