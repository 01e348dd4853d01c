// Checks that need no run: types, the C++ format, whether generated files are fresh. `npm run lint`.
import { fileURLToPath } from 'node:url';
import { environment, node, root } from './lib/paths.mjs';
import { main, run, SetupError, step } from './lib/steps.mjs';

const files = async (...patterns) =>
  (await run(['git', 'ls-files', '--', ...patterns], { cwd: root })).trim().split('\n');

const checks = {
  'types (tsc --build)': () => run([node, 'node_modules/typescript/bin/tsc', '--build'], { cwd: root }),
  'C++ format (clang-format)': async () =>
    run(['clang-format', '--dry-run', '--Werror', ...(await files('native/**.cc', 'native/**.h'))], { cwd: root }),
  'generated files are fresh': () => run([node, 'hack/generate.mjs', '--check'], { cwd: root }),
};

/** Runs them all and says how many failed. */
export async function lint() {
  const counts = { passed: 0, failed: 0 };
  for (const [title, check] of Object.entries(checks)) {
    try {
      await step(title, check);
      counts.passed += 1;
    } catch (error) {
      if (!(error instanceof SetupError)) throw error;
      process.stderr.write(`${error.message}\n`);
      counts.failed += 1;
    }
  }
  return counts;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  Object.assign(process.env, environment);
  await main(async () => ((await lint()).failed === 0 ? 0 : 1));
}
