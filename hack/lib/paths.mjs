// Where things are: the repository, the cache outside of it, and the versions of what the cache holds.
import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..');
export const versions = JSON.parse(readFileSync(join(root, 'hack', 'versions.json'), 'utf8'));

/** Downloads and builds that outlive a clone; FACETRAIN_CACHE moves it. */
export const cache = process.env.FACETRAIN_CACHE ?? join(homedir(), '.cache', 'facetrain');
export const libtorch = process.env.LIBTORCH_ROOT || join(cache, `libtorch-${versions.libtorch.version}`);
/** The same libtorch with the libraries that its CUDA half wants, and their headers. */
export const cudaLibtorch = process.env.LIBTORCH_ROOT || `${libtorch}-cuda`;
export const build = join(root, 'native', 'build');
/** The Node that package.json pins, in place once npm's packages are. */
export const node = join(root, 'node_modules', '.bin', 'node');
/** Environment of everything that is started: the pinned Node first, and the cache where the tests look for their tools. */
export const environment = {
  PATH: `${join(root, 'node_modules', '.bin')}:${join(cache, 'bin')}:${process.env.PATH}`,
  FACETRAIN_CACHE: cache,
};
