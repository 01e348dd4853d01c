/** Where `npm run setup -- --test` puts the programs that tests start. */
import { homedir } from 'node:os';
import { join } from 'node:path';

export const cachedTools = join(process.env.FACETRAIN_CACHE ?? join(homedir(), '.cache', 'facetrain'), 'bin');
