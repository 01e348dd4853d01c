// Runs clang-tidy over native/. A file with libtorch's headers takes 10 to 15 s, so the files that have passed with the
// same content before are skipped.
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { includesOf } from './imports.mjs';
import { build, root } from './paths.mjs';
import { run, SetupError } from './steps.mjs';

const config = join(root, 'native', '.clang-tidy');

/**
 * Checks every file of native/build/compile_commands.json.
 * @param {(detail: string) => void} show
 * @throws SetupError with the output for all files that have not passed
 */
export async function clangTidy(show) {
  const commands = JSON.parse(readFileSync(join(build, 'compile_commands.json'), 'utf8'));
  const common = [await run(['clang-tidy', '--version']), readFileSync(config, 'utf8')];
  const passedFile = join(build, 'clang-tidy-passed.json');
  const passed = existsSync(passedFile) ? JSON.parse(readFileSync(passedFile, 'utf8')) : {};

  const waiting = [];
  const keys = {};
  for (const { file, command } of commands) {
    const path = relative(root, file);
    keys[path] = digest([...common, command, ...sources(file)]);
    if (passed[path] !== keys[path]) waiting.push(path);
  }
  const total = waiting.length;
  const failures = [];
  const worker = async () => {
    for (let path = waiting.shift(); path !== undefined; path = waiting.shift()) {
      show(`${total - waiting.length} of ${total}: ${path}`);
      try {
        await run(['clang-tidy', '--quiet', `--config-file=${config}`, '-p', build, path], {
          cwd: root,
          tail: Infinity,
        });
        passed[path] = keys[path];
      } catch (error) {
        if (!(error instanceof SetupError)) throw error;
        failures.push(error.message);
      }
    }
  };
  await Promise.all(Array.from({ length: availableParallelism() }, worker));
  // Only files that still exist are kept.
  const kept = Object.entries(passed).filter(([path]) => path in keys);
  writeFileSync(passedFile, JSON.stringify(Object.fromEntries(kept)));
  if (failures.length > 0) throw new SetupError(failures.join('\n\n'));
}

/** The texts of a file and of all headers of native/ that it includes, directly or not. */
function sources(file) {
  const seen = new Map();
  const visit = (path) => {
    if (seen.has(path)) return;
    const text = readFileSync(path, 'utf8');
    seen.set(path, text);
    for (const { path: included } of includesOf(text)) {
      const found = [join(root, 'native', included), join(dirname(path), included)].find((each) => existsSync(each));
      if (found !== undefined) visit(found);
    }
  };
  visit(file);
  return [...seen].flat();
}

function digest(texts) {
  const hash = createHash('sha256');
  for (const text of texts) hash.update(text).update('\0');
  return hash.digest('hex');
}
