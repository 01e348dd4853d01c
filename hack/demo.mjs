// `npm run demo`: sets up, builds, and runs examples/lfw-small/job.yaml on this machine (training and quantization).
import { join } from 'node:path';
import { ADDON, buildNative } from './build.mjs';
import { environment, node, root } from './lib/paths.mjs';
import { attached, main } from './lib/steps.mjs';
import { setup } from './setup.mjs';

await main(async () => {
  await setup(['native']);
  await buildNative({ targets: [ADDON] });
  return attached(
    [
      node,
      join(root, 'cli', 'src', 'main.ts'),
      'run',
      '-f',
      join(root, 'examples', 'lfw-small', 'job.yaml'),
      ...process.argv.slice(2),
    ],
    { cwd: root, env: environment },
  );
});
