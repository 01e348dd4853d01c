// The Docker engine for the cluster of e2e/: one that runs already, else Debian's, which root installs and starts.
import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { debianPackages } from './debian.mjs';
import { cache } from './paths.mjs';
import { run, SetupError, step } from './steps.mjs';

const START_SECONDS = 30;

const isRunning = () =>
  run(['docker', 'version', '--format', '{{.Server.Version}}']).then(
    () => true,
    () => false,
  );
const isInstalled = (program) =>
  run(['sh', '-c', `command -v ${program}`]).then(
    () => true,
    () => false,
  );

/** @throws SetupError that says what is missing, where this user may not install or start it */
export async function dockerEngine() {
  if (process.getuid() === 0 && !(await isInstalled('debootstrap'))) await debianPackages(['debootstrap']);
  if (await isRunning()) return;
  if (process.getuid() !== 0)
    throw new SetupError(
      'No Docker engine answers to "docker version". Start one that this user may use, or run this as root.',
    );
  if (!(await isInstalled('dockerd'))) await debianPackages(['docker.io']);
  if (await isRunning()) return; // the package has started it
  await step('Docker engine', async () => {
    await mkdir(cache, { recursive: true });
    const log = join(cache, 'dockerd.log');
    const file = openSync(log, 'w');
    spawn('dockerd', [], { detached: true, stdio: ['ignore', file, file] }).unref();
    closeSync(file);
    for (let waited = 0; waited < START_SECONDS * 10; waited += 1) {
      if (await isRunning()) return;
      await delay(100);
    }
    throw new SetupError(`dockerd did not start:\n${(await readFile(log, 'utf8')).slice(-3000)}`);
  });
}
