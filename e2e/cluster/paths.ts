/** Where the repository is, and the cache that `npm run setup -- --test` fills. */
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';

export const root = resolve(import.meta.dirname, '..', '..');
export const cache = process.env.FACETRAIN_CACHE ?? join(homedir(), '.cache', 'facetrain');
export const programs = join(cache, 'bin');
