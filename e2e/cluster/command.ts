/** Programs that run to their end. */
import { spawn } from 'node:child_process';

export interface CommandOptions {
  cwd?: string;
  env?: Record<string, string>;
  /** Given to it, as its standard input. */
  input?: string;
  /** Is given each line of output as it comes. */
  show?: (line: string) => void;
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
export function command(argv: string[], { cwd, env, input, show }: CommandOptions = {}): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(argv[0]!, argv.slice(1), {
      cwd,
      env: { ...process.env, ...env },
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    let out = '';
    let err = '';
    const lines = (text: string) =>
      text
        .split('\n')
        .filter((line) => line.trim() !== '')
        .forEach((line) => show?.(line.trim()));
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      out += text;
      lines(text);
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      err += text;
      lines(text);
    });
    child.stdin.on('error', () => {}); // it did not want to read
    child.stdin.end(input ?? '');
    child.on('error', (error) => reject(new CommandError(argv, null, error.message)));
    child.on('close', (code) => (code === 0 ? resolve(out) : reject(new CommandError(argv, code, err || out))));
  });
}
