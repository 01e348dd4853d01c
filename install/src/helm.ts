/** Runs the Helm that hack/versions.json pins and `npm run setup -- --test` builds. */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { root, tools } from '../../hack/lib/paths.mjs';

export const chart = join(root, 'charts', 'facetrain');

export class HelmError extends Error {
  override readonly name = 'HelmError';
}

/**
 * @returns the standard output of `helm ARGS`
 * @throws HelmError with its standard error when it fails, or when it is not installed
 */
export function helm(args: string[], env: Record<string, string> = {}): Promise<string> {
  const program = join(tools, 'helm');
  if (!existsSync(program))
    return Promise.reject(new HelmError(`${program} is missing: run \`npm run setup -- --test\``));
  return new Promise((resolve, reject) => {
    const child = execFile(
      program,
      args,
      { env: { ...process.env, ...env }, maxBuffer: 64 << 20 },
      (error, stdout, stderr) => {
        if (error) reject(new HelmError(`helm ${args.join(' ')}: ${stderr || error.message}`, { cause: error }));
        else resolve(stdout);
      },
    );
    child.stdin?.end();
  });
}
