// The arguments of the scripts. This runs on Node 20 before any package is installed, so it may import only Node's own
// modules.
import { parseArgs } from 'node:util';
import { SetupError } from './steps.mjs';

/**
 * Prints the usage and ends the process with exit code 0, if the script's first argument asks for it.
 * @param {string} usage
 */
export function helpFirst(usage) {
  if (['--help', '-h'].includes(process.argv[2])) {
    process.stdout.write(usage);
    process.exit(0);
  }
}

/**
 * The script's arguments. With --help or -h it prints the usage and ends the process with exit code 0.
 * @param {string} usage
 * @param {Parameters<typeof parseArgs>[0]} config of parseArgs: the options, and whether other arguments are allowed
 * @throws SetupError when there is one that is not allowed: without that, a mistyped option would have no effect
 */
export function readArguments(usage, { options = {}, allowPositionals = false } = {}) {
  let parsed;
  try {
    parsed = parseArgs({ options: { ...options, help: { type: 'boolean', short: 'h' } }, allowPositionals });
  } catch (error) {
    throw new SetupError(`${error.message}\n\n${usage.trimEnd()}`);
  }
  if (parsed.values.help) {
    process.stdout.write(usage);
    process.exit(0);
  }
  return parsed;
}
