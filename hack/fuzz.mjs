// Searches for files that the INT7 runtime does not survive: `npm run fuzz`.
import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildFuzzer } from './build.mjs';
import { readArguments } from './lib/arguments.mjs';
import * as needs from './lib/needs.mjs';
import { environment, fuzzBuild } from './lib/paths.mjs';
import { attached, main, SetupError, step } from './lib/steps.mjs';
import { setup } from './setup.mjs';

const USAGE = `Usage: npm run fuzz -- [--minutes N] [--seed S]

Reads and runs damaged INT7 models under sanitizers (libFuzzer), and ends with 1 where one crashes, hangs, takes too
much memory, or gives other numbers with another instruction set. The file is then in native/build-fuzz/found, and
\`native/build-fuzz/model_fuzz FILE\` repeats it. Inputs that reach new code are kept in native/build-fuzz/corpus.

--minutes   how long; 10 by default
--seed      of the random changes; 1 by default
`;

const SECONDS_PER_FILE = 60; // a test machine may be slow: a good file takes some milliseconds
const MIB = 1024; // of the whole process, with the sanitizers' own memory
const LARGEST_FILE = 20_000;

/**
 * Builds the fuzzer and runs it.
 * @param {{ seconds: number, seed: number }} options
 * @returns {Promise<boolean>} whether it found such a file
 */
export async function fuzz({ seconds, seed }) {
  await step('Build of the fuzzer', buildFuzzer);
  const [corpus, found] = ['corpus', 'found'].map((name) => join(fuzzBuild, name));
  for (const folder of [corpus, found]) await mkdir(folder, { recursive: true });
  const options = {
    seed,
    max_total_time: seconds,
    timeout: SECONDS_PER_FILE,
    rss_limit_mb: MIB,
    max_len: LARGEST_FILE,
    artifact_prefix: `${found}/`,
    verbosity: 0,
    print_funcs: 0,
    print_final_stats: 1,
  };
  const flags = Object.entries(options).map(([name, value]) => `-${name}=${value}`);
  const code = await attached([join(fuzzBuild, 'model_fuzz'), ...flags, corpus], { cwd: fuzzBuild, env: environment });
  process.stderr.write(`${(await readdir(corpus)).length} files reach different code, seed ${seed}\n`);
  return code !== 0;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(async () => {
    const { values } = readArguments(USAGE, { options: { minutes: { type: 'string' }, seed: { type: 'string' } } });
    const [minutes, seed] = [Number(values.minutes ?? 10), Number(values.seed ?? 1)];
    if (!(minutes > 0)) throw new SetupError(`--minutes ${values.minutes}: a number above 0`);
    if (!Number.isInteger(seed) || seed < 1) throw new SetupError(`--seed ${values.seed}: a whole number from 1 on`);
    await setup(needs.fuzz);
    return (await fuzz({ seconds: Math.ceil(minutes * 60), seed })) ? 1 : 0;
  });
}
