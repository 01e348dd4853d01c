// The part of `npm run lint` that takes about a second, on the staged content of the staged files (hooks/pre-commit).
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { COLUMNS, wideLines } from './lib/line-width.mjs';
import { node, root } from './lib/paths.mjs';
import { main, run, SetupError } from './lib/steps.mjs';

const git = (...args) => run(['git', ...args], { cwd: root });

async function wide(files) {
  const found = [];
  for (const file of files) {
    for (const line of wideLines(file, await git('show', `:${file}`))) found.push(`${file}:${line}`);
  }
  if (found.length > 0) throw new SetupError(`Wider than ${COLUMNS} columns:\n${found.join('\n')}`);
}

await main(async () => {
  const staged = await git('diff', '--cached', '--name-only', '--diff-filter=ACMR', '-z');
  const files = staged.split('\0').filter((file) => file !== '' && existsSync(join(root, file)));
  const cpp = files.filter((file) => /\.(cc|h)$/.test(file));
  const biome = [
    node,
    'node_modules/.bin/biome',
    'check',
    '--staged',
    '--error-on-warnings',
    '--no-errors-on-unmatched',
  ];
  const results = await Promise.allSettled([
    run(biome, { cwd: root }),
    cpp.length > 0 && run(['clang-format', '--dry-run', '--Werror', ...cpp], { cwd: root }),
    wide(files),
  ]);
  const failures = results.flatMap(({ reason }) => (reason === undefined ? [] : [reason]));
  for (const error of failures)
    process.stderr.write(`${error instanceof SetupError ? error.message : error.stack}\n\n`);
  if (failures.length > 0)
    process.stderr.write('`npm run lint -- --fix` formats. `git commit --no-verify` skips this check.\n');
  return failures.length === 0 ? 0 : 1;
});
