// Runs the tests of native/ with the compiler's sanitizers: `npm run sanitize`.
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildSanitized } from './build.mjs';
import { readArguments } from './lib/arguments.mjs';
import { environment, root, sanitizedBuild } from './lib/paths.mjs';
import { attached, main, SetupError, step } from './lib/steps.mjs';
import { setup } from './setup.mjs';

const USAGE = `Usage: npm run sanitize -- memory | threads [PATTERN]

Builds the libraries and tests of native/ with sanitizers, into native/build-memory or native/build-threads, and runs
the tests, or those whose name matches the pattern.

memory    AddressSanitizer and UndefinedBehaviorSanitizer
threads   ThreadSanitizer. It does not see into libtorch: native/test/threads.supp has what it takes for races
`;

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(async () => {
    const [kind, pattern = '.', ...more] = readArguments(USAGE, { allowPositionals: true }).positionals;
    if (!['memory', 'threads'].includes(kind) || more.length > 0) throw new SetupError(USAGE);
    await setup(['native']);
    await step('Build with sanitizers', (show) => buildSanitized(kind, show));
    const options = ['--parallel', `${availableParallelism()}`, '--output-on-failure', '--timeout', '3600'];
    return attached(['ctest', '--test-dir', sanitizedBuild(kind), '--tests-regex', pattern, ...options], {
      env: {
        ...environment,
        // Leaks: of libtorch's own, which ends with its process.
        ASAN_OPTIONS: 'detect_leaks=0',
        UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1',
        TSAN_OPTIONS: `suppressions=${join(root, 'native', 'test', 'threads.supp')}`,
        OMP_NUM_THREADS: kind === 'threads' ? '1' : '2',
      },
    });
  });
}
