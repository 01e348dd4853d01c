// Builds native/ into native/build: `npm run build`.
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readArguments } from './lib/arguments.mjs';
import { build, cudaLibtorch, libtorch, root } from './lib/paths.mjs';
import { main, run, step } from './lib/steps.mjs';

const USAGE = `Usage: npm run build [-- [--addon] [--cuda]]

Builds native/ into native/build. Needs what \`npm run setup\` installs.

--addon   only the addon, which programs load: no tests
--cuda    with CUDA kernels and NCCL; needs \`npm run setup -- --cuda\`
`;

/** The target of the addon in native/CMakeLists.txt. */
export const ADDON = 'facetrain_node';

const require = createRequire(import.meta.url);
const folderOf = (name) => dirname(require.resolve(`${name}/package.json`));

async function configure({ cuda, always = false }, show) {
  const options = [
    `-DLIBTORCH_ROOT=${cuda ? cudaLibtorch : libtorch}`,
    `-DFACETRAIN_CUDA=${cuda ? 'ON' : 'AUTO'}`,
    '-DFACETRAIN_GLOO=ON',
    '-DFACETRAIN_PICTURES=ON',
    `-DNODE_ADDON_API=${folderOf('node-addon-api')}`,
    `-DNODE_API_HEADERS=${folderOf('node-api-headers')}`,
  ];
  const stamp = join(build, '.facetrain-options');
  // If CMakeLists.txt or the set of source files has changed, Ninja runs CMake itself.
  if (!always && existsSync(stamp) && readFileSync(stamp, 'utf8') === options.join('\n')) return;
  rmSync(stamp, { force: true });
  await run(['cmake', '-S', join(root, 'native'), '-B', build, '-G', 'Ninja', ...options], { show });
  writeFileSync(stamp, options.join('\n'));
}

/** Writes native/build/compile_commands.json for the source files that exist now, and builds nothing. */
export function configureNative(show) {
  return configure({ cuda: false, always: true }, show);
}

/** @param {{ targets?: string[], cuda?: boolean }} [options] `targets` of CMake; all when empty */
export async function buildNative({ targets = [], cuda = false } = {}) {
  const what = targets.length === 0 ? '' : ` (${targets.join(' ')})`;
  await step(`Native build${what}`, async (show) => {
    await configure({ cuda }, show);
    await run(['cmake', '--build', build, ...targets.flatMap((target) => ['--target', target])], { show });
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(() => {
    const { addon, cuda } = readArguments(USAGE, {
      options: { addon: { type: 'boolean' }, cuda: { type: 'boolean' } },
    }).values;
    return buildNative({ targets: addon ? [ADDON] : [], cuda });
  });
}
