// Builds native/ into native/build: `npm run build`.
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readArguments } from './lib/arguments.mjs';
import {
  arm64Build,
  build,
  cache,
  cudaBuild,
  cudaCompileOnly,
  cudaLibtorch,
  fuzzBuild,
  libtorch,
  root,
  sanitizedBuild,
} from './lib/paths.mjs';
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

/** All but the addon. */
const withoutAddon = (libraries, cuda) => [
  `-DLIBTORCH_ROOT=${libraries}`,
  `-DFACETRAIN_CUDA=${cuda}`,
  '-DFACETRAIN_GLOO=ON',
  '-DFACETRAIN_PICTURES=ON',
];
const withLibtorch = (libraries, cuda) => [
  ...withoutAddon(libraries, cuda),
  `-DNODE_ADDON_API=${folderOf('node-addon-api')}`,
  `-DNODE_API_HEADERS=${folderOf('node-api-headers')}`,
];

/** By the name of what each finds: the libraries and tests in native/, without the addon, which Node could not load. */
const sanitized = (name, sanitizers) => ({
  folder: sanitizedBuild(name),
  options: () => [...withoutAddon(libtorch, 'OFF'), `-DFACETRAIN_SANITIZE=${sanitizers}`],
});

/**
 * Where a build is, and of what: of libtorch for CPUs, with CUDA, or with CUDA only to compile and link; or of the INT7
 * runtime alone, for 64-bit ARM or with its fuzzer.
 */
const builds = {
  cpu: { folder: build, options: () => withLibtorch(libtorch, 'AUTO') },
  cuda: { folder: build, options: () => withLibtorch(cudaLibtorch, 'ON') },
  cudaCompileOnly: { folder: cudaBuild, options: () => withLibtorch(cudaCompileOnly, 'ON') },
  arm64: {
    folder: arm64Build,
    options: () => [
      '-DFACETRAIN_INT7_ONLY=ON',
      `-DCMAKE_TOOLCHAIN_FILE=${join(root, 'native', 'cmake', 'Arm64.cmake')}`,
    ],
  },
  fuzz: {
    folder: fuzzBuild,
    options: () => [
      '-DFACETRAIN_INT7_ONLY=ON',
      '-DFACETRAIN_FUZZ=ON',
      '-DCMAKE_C_COMPILER=clang-14',
      '-DCMAKE_CXX_COMPILER=clang++-14',
    ],
  },
  memory: sanitized('memory', 'address,undefined'),
  threads: sanitized('threads', 'thread'),
};

/**
 * Compiled objects are kept in the cache, for every clone. In depend mode ccache asks for the contents of the headers
 * that the compiler has listed; its other mode would miss what only a pass for a GPU includes.
 */
const compilers = {
  CCACHE_DIR: process.env.CCACHE_DIR ?? join(cache, 'ccache'),
  CCACHE_BASEDIR: root,
  CCACHE_NOHASHDIR: '1',
  CCACHE_DEPEND: '1',
  CCACHE_MAXSIZE: '3G',
};

async function configure(kind, show, { always = false } = {}) {
  const { folder, options: optionsOf } = builds[kind];
  const launchers = ['C', 'CXX', 'CUDA'].map((language) => `-DCMAKE_${language}_COMPILER_LAUNCHER=ccache`);
  const options = [
    ...optionsOf(),
    ...(await run(['ccache', '--version']).then(
      () => launchers,
      () => [],
    )),
  ];
  const stamp = join(folder, '.facetrain-options');
  // If CMakeLists.txt or the set of source files has changed, Ninja runs CMake itself.
  if (!always && existsSync(stamp) && readFileSync(stamp, 'utf8') === options.join('\n')) return;
  rmSync(stamp, { force: true });
  await run(['cmake', '-S', join(root, 'native'), '-B', folder, '-G', 'Ninja', ...options], { show });
  writeFileSync(stamp, options.join('\n'));
}

/** Writes native/build/compile_commands.json for the source files that exist now, and builds nothing. */
export function configureNative(show) {
  return configure('cpu', show, { always: true });
}

async function buildTargets(kind, targets, show) {
  await configure(kind, show);
  const command = ['cmake', '--build', builds[kind].folder, ...targets.flatMap((target) => ['--target', target])];
  await run(command, { show, env: compilers });
}

/** @param {{ targets?: string[], cuda?: boolean }} [options] `targets` of CMake; all when empty */
export async function buildNative({ targets = [], cuda = false } = {}) {
  const what = targets.length === 0 ? '' : ` (${targets.join(' ')})`;
  await step(`Native build${what}`, (show) => buildTargets(cuda ? 'cuda' : 'cpu', targets, show));
}

/**
 * Compiles and links all code for CUDA: the addon, the tests that use a GPU, the benchmarks. Nothing of it can run, for
 * NVIDIA's libraries are not there.
 * @param {(detail: string) => void} show
 * @throws SetupError with the compiler's output
 */
export function compileForCuda(show) {
  return buildTargets('cudaCompileOnly', [ADDON, 'gpu_tests', 'pfc_bench', 'train_bench'], show);
}

/**
 * Builds the C library and its tests for 64-bit ARM.
 * @param {(detail: string) => void} show
 * @throws SetupError with the compiler's output
 */
export function buildForArm64(show) {
  return buildTargets('arm64', [], show);
}

/**
 * Builds the libraries and tests with sanitizers.
 * @param {'memory' | 'threads'} kind
 * @param {(detail: string) => void} show
 * @throws SetupError with the compiler's output
 */
export function buildSanitized(kind, show) {
  return buildTargets(kind, [], show);
}

/**
 * Builds the fuzzer of the C library's reader.
 * @param {(detail: string) => void} show
 * @throws SetupError with the compiler's output
 */
export function buildFuzzer(show) {
  return buildTargets('fuzz', ['model_fuzz'], show);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(() => {
    const { addon, cuda } = readArguments(USAGE, {
      options: { addon: { type: 'boolean' }, cuda: { type: 'boolean' } },
    }).values;
    return buildNative({ targets: addon ? [ADDON] : [], cuda });
  });
}
