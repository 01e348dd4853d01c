// The files of this repository.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './paths.mjs';
import { run } from './steps.mjs';

/** @returns {Promise<string[]>} paths, relative to the root, of the files that git tracks or does not ignore */
export async function repositoryFiles() {
  const listed = await run(['git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z'], { cwd: root });
  return [...new Set(listed.split('\0'))].filter((path) => path !== '' && existsSync(join(root, path)));
}
