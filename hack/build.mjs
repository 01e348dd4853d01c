// Builds native/ into native/build (or --build-dir DIR): `npm run build`. Needs what `npm run setup` installs.
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const cache = process.env.FACETRAIN_CACHE ?? join(homedir(), '.cache', 'facetrain');
const require = createRequire(import.meta.url);
const packageFolder = (name) => dirname(require.resolve(`${name}/package.json`));

const build = join(root, 'native', 'build');
const run = (...command) => {
  const { status } = spawnSync(command[0], command.slice(1), { stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
};
run('cmake', '-S', join(root, 'native'), '-B', build, '-G', 'Ninja',
  `-DLIBTORCH_ROOT=${process.env.LIBTORCH_ROOT ?? join(cache, 'libtorch-2.15.0')}`,
  `-DNODE_ADDON_API=${packageFolder('node-addon-api')}`,
  `-DNODE_API_HEADERS=${packageFolder('node-api-headers')}`);
run('cmake', '--build', build);
