// Runs every test there is, after installing what they need: `npm test`. The last line counts them over all runners.
// `npm test -- --only native|lint|node|e2e` runs one part; `npm test -- --only node -- FILE…` some files of it.
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { buildNative } from './build.mjs';
import { dockerEngine } from './lib/docker.mjs';
import { build, environment, node, root } from './lib/paths.mjs';
import { attached, main } from './lib/steps.mjs';
import { lint } from './lint.mjs';
import { setup } from './setup.mjs';

const FOLDERS = ['api', 'planner', 'native', 'operator', 'trainer-image', 'cli', 'install', 'deploy/pulumi', 'hack'];
const MINUTES_A_TEST = 10;
/** All of a file of e2e/, with the builds of images that its first test waits for. */
const MINUTES_A_CLUSTER = 60;

/** Each suite resolves to what it counted. */
const suites = {
  async lint() {
    return lint();
  },

  async native() {
    const code = await attached(
      [
        'ctest',
        '--test-dir',
        build,
        '--output-on-failure',
        '--timeout',
        '300',
        '--output-log',
        join(build, 'ctest.log'),
      ],
      { env: environment },
    );
    const counts = /tests passed, (\d+) tests? failed out of (\d+)/.exec(
      await readFile(join(build, 'ctest.log'), 'utf8'),
    );
    if (!counts) return { passed: 0, failed: 1 };
    const failed = Number(counts[1]);
    return { passed: Number(counts[2]) - failed, failed: code !== 0 && failed === 0 ? 1 : failed };
  },

  node(files) {
    return nodeTests(
      files.length > 0
        ? files
        : FOLDERS.filter((folder) => existsSync(join(root, folder))).map((folder) => `${folder}/**/*.test.{ts,mjs}`),
      MINUTES_A_TEST,
    );
  },

  async e2e(files) {
    await dockerEngine();
    return nodeTests(files.length > 0 ? files : ['e2e/**/*.test.ts'], MINUTES_A_CLUSTER);
  },
};

async function nodeTests(patterns, minutes) {
  const scratch = await mkdtemp(join(tmpdir(), 'facetrain-test-'));
  try {
    const counts = join(scratch, 'counts.json');
    const code = await attached(
      [
        node,
        '--test',
        `--test-timeout=${minutes * 60_000}`,
        '--test-reporter=spec',
        '--test-reporter-destination=stdout',
        `--test-reporter=${join(root, 'hack', 'lib', 'count-reporter.mjs')}`,
        `--test-reporter-destination=${counts}`,
        ...patterns,
      ],
      { cwd: root, env: environment },
    );
    const { passed, failed } = JSON.parse(await readFile(counts, 'utf8').catch(() => '{"passed":0,"failed":1}'));
    return { passed, failed: code !== 0 && failed === 0 ? 1 : failed };
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

await main(async () => {
  const { values, positionals } = parseArgs({ options: { only: { type: 'string' } }, allowPositionals: true });
  await setup({ test: true });
  await buildNative();
  const total = { passed: 0, failed: 0 };
  for (const [name, suite] of Object.entries(suites)) {
    if (values.only && values.only !== name) continue;
    const { passed, failed } = await suite(positionals);
    total.passed += passed;
    total.failed += failed;
  }
  if (total.passed + total.failed === 0) total.failed = 1; // nothing ran: that is no success
  await new Promise((resolve) => process.stdout.write(`${total.passed} passed, ${total.failed} failed\n`, resolve));
  return total.failed === 0 ? 0 : 1;
});
