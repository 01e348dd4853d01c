/** For `node --import`: on rank 1, every file of class centres seems to be a byte longer than it is. */
import files from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';

if (process.env.RANK === '1') {
  const { stat } = files;
  files.stat = (async (path: string) => {
    const found = await stat(path);
    if (path.includes('rows-')) found.size++;
    return found;
  }) as typeof stat;
  syncBuiltinESMExports();
}
