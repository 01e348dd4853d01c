/**
 * For `node --import`: every file of class centres takes 300 ms to open, as on slow storage. Steps go on meanwhile, so
 * that a checkpoint that were not written from a copy would have numbers of a later step. With
 * FACETRAIN_TEST_KILL=RANK/STEP, that rank is killed instead of opening its file of that step.
 */
import files from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { setTimeout as delay } from 'node:timers/promises';

const [rank, step] = (process.env.FACETRAIN_TEST_KILL ?? '').split('/');
const { open } = files;
files.open = async (...args: Parameters<typeof open>) => {
  const [path, flags] = args;
  if (flags === 'wx' && String(path).includes('/rows-')) {
    await delay(300);
    if (process.env.RANK === rank && String(path).includes(`step-${String(step).padStart(10, '0')}/`))
      process.kill(process.pid, 'SIGKILL');
  }
  return open(...args);
};
syncBuiltinESMExports();
