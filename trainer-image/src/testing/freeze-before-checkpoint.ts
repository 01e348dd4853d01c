/**
 * For `node --import`: stops the process by SIGSTOP before it gives the checkpoint of step 2 its place, when it has
 * already checked that no newer attempt began. No test can hit that moment from outside.
 */
import files from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';

const { rename } = files;
files.rename = async (from, to) => {
  if (String(to).endsWith('step-0000000002')) process.kill(process.pid, 'SIGSTOP');
  await rename(from, to);
};
syncBuiltinESMExports();
