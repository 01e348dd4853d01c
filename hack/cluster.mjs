// A Kubernetes in containers of this machine: `npm run cluster`.
import { join } from 'node:path';
import { helpFirst } from './lib/arguments.mjs';
import { dockerEngine } from './lib/docker.mjs';
import * as needs from './lib/needs.mjs';
import { environment, node, root } from './lib/paths.mjs';
import { attached, main } from './lib/steps.mjs';
import { setup } from './setup.mjs';

const USAGE = `Usage: npm run cluster -- up | kubeconfig | down

A Kubernetes in containers of this machine, with Facetrain, an object store and the example's faces installed.

up            starts it; run again, it installs what is missing
kubeconfig    prints the path of its kubeconfig
down          removes it
`;

await main(async () => {
  helpFirst(USAGE);
  const [action = ''] = process.argv.slice(2);
  if (action === 'up') await setup(needs.paths.e2e);
  if (action === 'up' || action === 'down') await dockerEngine();
  return attached([node, join(root, 'e2e', 'cluster', 'main.ts'), action], { cwd: root, env: environment });
});
