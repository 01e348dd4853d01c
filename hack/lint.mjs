// Checks that run no test: `npm run lint`.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { configureNative } from './build.mjs';
import { readArguments } from './lib/arguments.mjs';
import { clangTidy } from './lib/clang-tidy.mjs';
import { repositoryFiles } from './lib/files.mjs';
import { COLUMNS, checkLineWidth } from './lib/line-width.mjs';
import * as needs from './lib/needs.mjs';
import { node, root } from './lib/paths.mjs';
import { main, run, SetupError, step } from './lib/steps.mjs';
import { setup } from './setup.mjs';

const USAGE = `Usage: npm run lint [-- --fix]

Runs the checks that are no tests, and prints one line for each. With --fix it formats first, and generates anew.
`;

/** Runs a program in the repository; where it fails, the error has all of its output. */
const program = (command) => run(command, { cwd: root, tail: Number.POSITIVE_INFINITY });

const cpp = (files) => files.filter((file) => /\.(cc|cu|cuh|h)$/.test(file));
const shell = (files) =>
  files.filter((file) => file.endsWith('.sh') || /^#!.*\b(ba)?sh\n/.test(readFileSync(join(root, file), 'utf8')));

const biome = (...options) =>
  program([node, 'node_modules/.bin/biome', 'check', '--error-on-warnings', '--max-diagnostics=none', ...options]);
const generate = (...options) => program([node, 'install/generate.mjs', ...options]);

const fixes = {
  'TypeScript and JSON format (biome)': () => biome('--write', '.'),
  'C++ format (clang-format)': (files) => program(['clang-format', '-i', ...cpp(files)]),
  'generated files': () => generate(),
};

/** Each check gets the repository's files and a function that shows its progress. */
const checks = {
  'TypeScript and JSON (biome)': () => biome('.'),
  'types (tsc)': () => program([node, 'node_modules/typescript/bin/tsc', '--build']),
  'C++ format (clang-format)': (files) => program(['clang-format', '--dry-run', '--Werror', ...cpp(files)]),
  'C++ (clang-tidy)': async (_files, show) => {
    await configureNative(show); // writes the compile commands that clang-tidy reads
    await clangTidy(show);
  },
  'shell scripts (shellcheck)': (files) =>
    program(['shellcheck', '--external-sources', '--source-path=SCRIPTDIR', ...shell(files)]),
  'generated files are fresh': () => generate('--check'),
  [`lines end by column ${COLUMNS}`]: (files) => checkLineWidth(files),
};

/** Runs all steps, also after one has failed, and prints the error of each that failed. */
export async function runAll(steps) {
  const files = await repositoryFiles();
  const counts = { passed: 0, failed: 0 };
  for (const [title, body] of Object.entries(steps)) {
    try {
      await step(title, async (show) => body(files, show));
      counts.passed += 1;
    } catch (error) {
      process.stderr.write(`${error instanceof SetupError ? error.message : error.stack}\n`);
      counts.failed += 1;
    }
  }
  return counts;
}

/**
 * Runs the checks; what needs.lint names must be installed.
 * @returns {Promise<{ passed: number, failed: number }>} the numbers of checks
 */
export function lint() {
  return runAll(checks);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(async () => {
    const { fix } = readArguments(USAGE, { options: { fix: { type: 'boolean' } } }).values;
    await setup(needs.lint);
    if (fix) await runAll(fixes);
    return (await lint()).failed === 0 ? 0 : 1;
  });
}
