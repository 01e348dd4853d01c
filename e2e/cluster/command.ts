/** Runs a program of this machine to its end. */
import { spawn } from 'node:child_process';

export interface CommandOptions {
  cwd?: string;
  env?: Record<string, string>;
  /** Its standard input. */
  input?: string;
  /** Is called with each line of output, as soon as it is written. */
  onLine?: (line: string) => void;
}

export class CommandError extends Error {
  readonly exitCode: number | null;
  readonly stderr: string;

  constructor(argv: string[], exitCode: number | null, stderr: string) {
    super(`"${argv.join(' ')}" ended with ${exitCode}:\n${stderr.slice(-4000)}`);
    this.exitCode = exitCode;
    this.stderr = stderr;
  }
}

/** @returns its standard output. @throws CommandError when it fails or cannot be started */
export function command(argv: string[], { cwd, env, input, onLine }: CommandOptions = {}): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(argv[0]!, argv.slice(1), {
      cwd,
      env: { ...process.env, ...env },
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    let out = '';
    let err = '';
    const reportLines = (text: string) =>
      text
        .split('\n')
        .filter((line) => line.trim() !== '')
        .forEach((line) => onLine?.(line.trim()));
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      out += text;
      reportLines(text);
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      err += text;
      reportLines(text);
    });
    child.stdin.on('error', () => {}); // EPIPE: the program has not read its input
    child.stdin.end(input ?? '');
    child.on('error', (error) => reject(new CommandError(argv, null, error.message)));
    child.on('close', (code) => (code === 0 ? resolve(out) : reject(new CommandError(argv, code, err || out))));
  });
}
