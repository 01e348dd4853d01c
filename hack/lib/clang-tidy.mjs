// Runs clang-tidy over native/. A file with libtorch's headers takes 10 to 15 s, so a file that has passed is checked
// again only when its content changes: the cache holds an empty file clang-tidy/KEY for each content that has passed.
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { includesOf } from './imports.mjs';
import { build, cache, root } from './paths.mjs';
import { run, SetupError } from './steps.mjs';

const config = join(root, 'native', '.clang-tidy');
const passed = join(cache, 'clang-tidy');

/** Clang 14 has no omp.h; GCC, which compiles, has. Serial loops are checked all the same. */
const NO_OPENMP = '--extra-arg=-fno-openmp';

/**
 * Checks every file of native/build/compile_commands.json.
 * @param {(detail: string) => void} show
 * @throws SetupError with the output for all files that have not passed
 */
export async function clangTidy(show) {
  const commands = JSON.parse(readFileSync(join(build, 'compile_commands.json'), 'utf8'));
  const common = [await run(['clang-tidy', '--version']), readFileSync(config, 'utf8')];
  const waiting = commands
    // The key is the same in every clone of this repository.
    .map(({ file, command }) => ({ file, key: digest([...common, command.replaceAll(root, ''), ...sources(file)]) }))
    .filter(({ key }) => !existsSync(join(passed, key)));
  const total = waiting.length;
  mkdirSync(passed, { recursive: true });
  const failures = [];
  const worker = async () => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const path = relative(root, next.file);
      show(`${total - waiting.length} of ${total}: ${path}`);
      try {
        await run(['clang-tidy', '--quiet', `--config-file=${config}`, NO_OPENMP, '-p', build, path], {
          cwd: root,
          tail: Infinity,
        });
        writeFileSync(join(passed, next.key), '');
      } catch (error) {
        if (!(error instanceof SetupError)) throw error;
        failures.push(error.message);
      }
    }
  };
  await Promise.all(Array.from({ length: availableParallelism() }, worker));
  if (failures.length > 0) throw new SetupError(failures.join('\n\n'));
}

/**
 * @param {string} file
 * @returns {string[]} paths and texts of the file and of all headers of native/ that it includes, directly or not
 */
export function sources(file) {
  const texts = new Map();
  const read = (path) => {
    if (texts.has(path)) return;
    const text = readFileSync(path, 'utf8');
    texts.set(path, text);
    for (const { path: included } of includesOf(text)) {
      const found = [join(root, 'native', included), join(dirname(path), included)].find((each) => existsSync(each));
      if (found !== undefined) read(found);
    }
  };
  read(file);
  return [...texts].flatMap(([path, text]) => [relative(root, path), text]);
}

function digest(texts) {
  const hash = createHash('sha256');
  for (const text of texts) hash.update(text).update('\0');
  return hash.digest('hex');
}
