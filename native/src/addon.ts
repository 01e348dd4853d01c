/**
 * Loads the native addon once, and ends its threads when the process exits: a thread that is still inside libtorch
 * while C++'s static destructors run would turn every process.exit() and every uncaught error into a crash.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { FacetrainError } from '@facetrain/api';

interface Shutdown {
  shutdown(exitCode: number): void;
  exitNow(exitCode: number): never;
}

const file = join(import.meta.dirname, '..', 'build', 'facetrain.node');

function load(): Shutdown {
  try {
    return createRequire(import.meta.url)(file) as Shutdown;
  } catch (cause) {
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: file,
      found: `the native addon cannot be loaded (${(cause as Error).message})`,
      allowed: 'build it with `npm run build` (and `npm run setup` before that)',
      cause,
    });
  }
}

const addon = load();
process.on('exit', (code) => addon.shutdown(code));

/** SHA-256 of the addon's file. Two processes with the same one compute the same. */
export function addonDigest(): string {
  return createHash('sha256').update(readFileSync(file)).digest('hex');
}

/**
 * Ends the process at once, by _exit(2). As the last listener on 'exit' it keeps process.exit() from waiting for the
 * threads of libuv's pool: one that waits for storage that does not answer never ends. The listeners after it do not
 * run.
 */
export function exitNow(exitCode: number): never {
  return addon.exitNow(exitCode);
}

/**
 * The addon, typed as the interface of the functions that the calling file uses. The types are not checked at run time.
 */
export function native<Part>(): Part {
  return addon as unknown as Part;
}
