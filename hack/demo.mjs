// Runs the example on this machine: `npm run demo`.
import { join } from 'node:path';
import { ADDON, buildNative } from './build.mjs';
import { helpFirst } from './lib/arguments.mjs';
import { environment, node, root } from './lib/paths.mjs';
import { attached, main } from './lib/steps.mjs';
import { setup } from './setup.mjs';

const USAGE = `Usage: npm run demo [-- OPTION...]

Sets up, builds, and runs examples/lfw-small/job.yaml on this machine: training and quantization. The options are those
of \`facetrain run\`.
`;

await main(async () => {
  helpFirst(USAGE);
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
