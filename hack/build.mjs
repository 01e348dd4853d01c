// Builds native/ into native/build: `npm run build`, or with --addon only what programs load. Needs what `npm run setup` installs.
// With --cuda for GPUs as well, which needs `npm run setup -- --cuda`.
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build, cudaLibtorch, libtorch, root } from './lib/paths.mjs';
import { main, run, step } from './lib/steps.mjs';

const require = createRequire(import.meta.url);
const folderOf = (name) => dirname(require.resolve(`${name}/package.json`));

export async function buildNative({ addon = false, cuda = false } = {}) {
  await step('Native build', async (show) => {
    await run(
      [
        'cmake',
        '-S',
        join(root, 'native'),
        '-B',
        build,
        '-G',
        'Ninja',
        `-DLIBTORCH_ROOT=${cuda ? cudaLibtorch : libtorch}`,
        `-DFACETRAIN_NCCL=${cuda ? 'ON' : 'AUTO'}`,
        `-DNODE_ADDON_API=${folderOf('node-addon-api')}`,
        `-DNODE_API_HEADERS=${folderOf('node-api-headers')}`,
      ],
      { show },
    );
    await run(['cmake', '--build', build, ...(addon ? ['--target', 'facetrain_node'] : [])], { show });
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const given = (option) => process.argv.includes(`--${option}`);
  await main(() => buildNative({ addon: given('addon'), cuda: given('cuda') }));
}
