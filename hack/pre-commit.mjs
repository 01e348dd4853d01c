// The part of `npm run lint` that takes a second or two, on the working tree's versions of the staged files.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { checkLineWidth } from './lib/line-width.mjs';
import { node, root } from './lib/paths.mjs';
import { main, run, SetupError } from './lib/steps.mjs';

const program = (command) => run(command, { cwd: root, tail: Number.POSITIVE_INFINITY });
const biome = [node, 'node_modules/.bin/biome', 'check', '--staged', '--error-on-warnings', '--no-errors-on-unmatched'];

async function stagedFiles() {
  const staged = await program(['git', 'diff', '--cached', '--name-only', '--diff-filter=ACMR', '-z']);
  return staged.split('\0').filter((file) => file !== '' && existsSync(join(root, file)));
}

async function clangFormat(files) {
  const cpp = files.filter((file) => /\.(cc|cu|cuh|h)$/.test(file));
  if (cpp.length > 0) await program(['clang-format', '--dry-run', '--Werror', ...cpp]);
}

await main(async () => {
  const files = await stagedFiles();
  const results = await Promise.allSettled([program(biome), clangFormat(files), (async () => checkLineWidth(files))()]);
  const errors = results.flatMap(({ reason }) => (reason === undefined ? [] : [reason]));
  for (const error of errors) {
    process.stderr.write(`${error instanceof SetupError ? error.message : error.stack}\n\n`);
  }
  if (errors.length === 0) return 0;
  process.stderr.write('`npm run lint -- --fix` formats. `git commit --no-verify` skips this check.\n');
  return 1;
});
