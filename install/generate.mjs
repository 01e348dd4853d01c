// Writes the files that are generated and checked in: `npm run generate`. What is generated: src/generate.ts.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { readArguments } from '../hack/lib/arguments.mjs';
import { root } from '../hack/lib/paths.mjs';
import { main, SetupError } from '../hack/lib/steps.mjs';
import { generatedFiles } from './src/generate.ts';
import { HelmError } from './src/helm.ts';

const USAGE = `Usage: npm run generate [-- --check]

Writes the files that are generated and checked in. With --check it writes nothing, and a file that differs is an error.
`;

/** Writes the files that differ (or, with `check`, only finds them). Returns their paths. */
function update(files, check) {
  const different = Object.entries(files).filter(([path, content]) => {
    const file = join(root, path);
    return !existsSync(file) || readFileSync(file, 'utf8') !== content;
  });
  for (const [path, content] of check ? [] : different) {
    const file = join(root, path);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, content);
    process.stderr.write(`${path}: written\n`);
  }
  return different.map(([path]) => path);
}

await main(async () => {
  const { check } = readArguments(USAGE, { options: { check: { type: 'boolean' } } }).values;
  const stale = [];
  try {
    for await (const files of generatedFiles()) stale.push(...update(files, check));
  } catch (error) {
    throw error instanceof HelmError ? new SetupError(error.message) : error;
  }
  if (check && stale.length > 0) throw new SetupError(`not as generated: ${stale.join(', ')}; run npm run generate`);
});
