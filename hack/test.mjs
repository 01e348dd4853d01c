// Runs tests, after installing and building what they need: `npm test`. The last line counts them over all suites.
import { randomInt } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { isAbsolute, join, relative } from 'node:path';
import { ADDON, buildForArm64, buildNative, compileForCuda } from './build.mjs';
import { fuzz } from './fuzz.mjs';
import { readArguments } from './lib/arguments.mjs';
import { dockerEngine } from './lib/docker.mjs';
import { repositoryFiles } from './lib/files.mjs';
import * as needs from './lib/needs.mjs';
import { arm64Build, build, environment, node, root } from './lib/paths.mjs';
import { attached, main, step } from './lib/steps.mjs';
import { isTest, programOf, select } from './lib/test-selection.mjs';
import { lint } from './lint.mjs';
import { setup } from './setup.mjs';

const USAGE = `Usage: npm test [-- [--only NAME] [-t PATTERN] [FILE...]]

npm test                          every suite: lint, native (ctest), arm64 (the C library, ctest in an emulator),
                                  cuda (compiled and linked), fuzz (damaged
                                  INT7 models, half a minute), node (node:test), e2e (node:test on a cluster)
npm test -- --only NAME           one suite, or one folder with its subfolders
npm test -- FILE...               files: *.test.ts, *_test.cc or the name of its program; also folders
npm test -- [...] -t PATTERN      only the tests of node:test whose name matches
`;

/** The slowest, a soak, gives up after a dozen minutes by itself. */
const MINUTES_PER_TEST = 20;
const hooks = join(root, 'hack', 'lib', 'hooks.mjs');
/** The limit for a file of e2e/. Its first test waits for the builds of images. */
const MINUTES_PER_CLUSTER = 60;

/** Runs test programs of a build of native/; each counts as one test. */
async function ctest(folder, chosen = []) {
  const log = join(folder, 'ctest.log');
  const parallel = String(availableParallelism());
  const options = ['--parallel', parallel, '--output-on-failure', '--timeout', '1200', '--output-log', log];
  const code = await attached(['ctest', '--test-dir', folder, ...chosen, ...options], { env: environment });
  const counts = /tests passed, (\d+) tests? failed out of (\d+)/.exec(await readFile(log, 'utf8'));
  if (!counts) return { passed: 0, failed: 1 };
  const failed = Number(counts[1]);
  return { passed: Number(counts[2]) - failed, failed: code !== 0 && failed === 0 ? 1 : failed };
}

/** With `all`, also the tests that no file stands for: a program with sanitizers, the C library as others link it. */
const nativeTests = ({ native, all }) =>
  ctest(build, all ? [] : ['--tests-regex', `^(${native.map(programOf).join('|')})$`]);

/** Builds the C library for 64-bit ARM, and runs its tests in an emulator. */
async function arm64Tests() {
  try {
    await step('Build for 64-bit ARM', buildForArm64);
  } catch (error) {
    process.stderr.write(`${error.message}\n`);
    return { passed: 0, failed: 1 };
  }
  return ctest(arm64Build);
}

/** Compiles and links the code for CUDA, which needs no GPU; counts as one test. */
async function cudaTest() {
  try {
    await step('Build for CUDA', compileForCuda);
    return { passed: 1, failed: 0 };
  } catch (error) {
    process.stderr.write(`${error.message}\n`);
    return { passed: 0, failed: 1 };
  }
}

/** Damaged models for half a minute, other ones in each run; counts as one test. */
async function fuzzTest() {
  const found = await fuzz({ seconds: 30, seed: randomInt(1, 2 ** 31) });
  return found ? { passed: 0, failed: 1 } : { passed: 1, failed: 0 };
}

async function nodeTests(files, { minutes, atOnce, pattern }) {
  const scratch = await mkdtemp(join(tmpdir(), 'facetrain-test-'));
  try {
    const counts = join(scratch, 'counts.json');
    const code = await attached(
      [
        node,
        '--test',
        `--test-timeout=${minutes * 60_000}`,
        `--test-concurrency=${atOnce}`,
        '--test-reporter=spec',
        '--test-reporter-destination=stdout',
        `--test-reporter=${join(root, 'hack', 'lib', 'count-reporter.mjs')}`,
        `--test-reporter-destination=${counts}`,
        ...(pattern === undefined ? [] : [`--test-name-pattern=${pattern}`, `--import=${hooks}`]),
        ...files,
      ],
      { cwd: root, env: environment },
    );
    const { passed, failed } = JSON.parse(await readFile(counts, 'utf8').catch(() => '{"passed":0,"failed":1}'));
    return { passed, failed: code !== 0 && failed === 0 ? 1 : failed };
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/** Installs and builds what the chosen tests need, and nothing else. */
async function prepare({ lint: lints, arm64, cuda, fuzz: fuzzes, native, node: modules, e2e, all }) {
  const ofTests = [...native, ...modules, ...e2e].flatMap(needs.ofFile);
  await setup([
    ...new Set([
      ...(lints ? needs.lint : []),
      ...(arm64 ? needs.arm64 : []),
      ...(cuda ? needs.cuda : []),
      ...(fuzzes ? needs.fuzz : []),
      ...ofTests,
    ]),
  ]);
  const addon = modules.some((file) => needs.ofFile(file).includes('native'));
  const targets = [...native.map(programOf), ...(addon ? [ADDON] : [])];
  if (targets.length > 0) await buildNative({ targets: all ? [] : targets });
}

function parsed() {
  const options = { only: { type: 'string' }, pattern: { type: 'string', short: 't' } };
  const { values, positionals } = readArguments(USAGE, { options, allowPositionals: true });
  return { ...values, names: positionals.map((name) => (isAbsolute(name) ? relative(root, name) : name)) };
}

await main(async () => {
  const chosen = parsed();
  const files = (await repositoryFiles()).filter(isTest);
  const selection = select(files, chosen);
  await prepare(selection);

  const results = [];
  if (selection.lint) results.push(await lint());
  if (selection.native.length > 0) results.push(await nativeTests(selection));
  if (selection.arm64) results.push(await arm64Tests());
  if (selection.cuda) results.push(await cudaTest());
  if (selection.fuzz) results.push(await fuzzTest());
  const { pattern } = chosen;
  if (selection.node.length > 0) {
    // Many wait for servers and processes most of the time.
    const atOnce = availableParallelism() + 1;
    results.push(await nodeTests(selection.node, { minutes: MINUTES_PER_TEST, atOnce, pattern }));
  }
  if (selection.e2e.length > 0) {
    await dockerEngine();
    // They wait for most of the time, too. The engine builds what their images share once.
    results.push(await nodeTests(selection.e2e, { minutes: MINUTES_PER_CLUSTER, atOnce: 2, pattern }));
  }
  const passed = results.reduce((sum, result) => sum + result.passed, 0);
  let failed = results.reduce((sum, result) => sum + result.failed, 0);
  if (passed + failed === 0) {
    process.stderr.write(`No test ran${chosen.pattern === undefined ? '' : `: no name matches ${chosen.pattern}`}.\n`);
    failed = 1; // a run without a test is a failure
  }
  await new Promise((resolve) => process.stdout.write(`${passed} passed, ${failed} failed\n`, resolve));
  return failed === 0 ? 0 : 1;
});
