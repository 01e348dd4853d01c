// Jobs on simulated nodes, or in a cluster in containers, while random faults happen, and what was stored checked
// afterwards: `npm run soak`.
import { join } from 'node:path';
import { dockerEngine } from './lib/docker.mjs';
import * as needs from './lib/needs.mjs';
import { environment, node, root } from './lib/paths.mjs';
import { attached, main } from './lib/steps.mjs';
import { setup } from './setup.mjs';

await main(async () => {
  const args = process.argv.slice(2);
  if (!args.includes('--help') && !args.includes('-h')) {
    const inCluster = args.includes('--cluster');
    await setup(needs.paths[inCluster ? 'e2e' : 'e2e/soak']);
    if (inCluster) await dockerEngine();
  }
  return attached([node, join(root, 'e2e', 'soak', 'main.ts'), ...args], { cwd: root, env: environment });
});
