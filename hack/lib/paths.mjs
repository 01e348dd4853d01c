// Where things are: the repository, the cache outside of it, and the versions of what the cache holds. Scripts, tests,
// install/, bench/ and e2e/ take these paths from here; the programs in the images have no repository around them.
// Runs before anything is installed, on Node 20, so it may use nothing but Node itself. Types: paths.d.mts.
import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = resolve(dirname(fileURLToPath(import.meta.url)), '..', '..');
/** The faces of examples/lfw-small: the folder of a dataset, with a verification set in lfw-small.bin. */
export const exampleFaces = join(root, 'examples', 'lfw-small', 'data');
export const versions = JSON.parse(readFileSync(join(root, 'hack', 'versions.json'), 'utf8'));

/** Downloads and builds that outlive a clone; FACETRAIN_CACHE moves it. */
export const cache = process.env.FACETRAIN_CACHE ?? join(homedir(), '.cache', 'facetrain');
/** The folder of Kubernetes' and the other Go programs that `npm run setup -- --test` builds. */
export const tools = join(cache, 'bin');
/** A folder of the Go module of a program (`files` in versions.json): manifests that the program needs. */
export const moduleFiles = (name) => join(cache, `${name}-${versions.goTools[name].version}`);
/** The Python environment that `npm run setup -- --test` makes, with the packages that versions.json pins. */
export const pythonEnvironment = join(cache, 'python');
export const python = join(pythonEnvironment, 'bin', 'python');
/** ncnn's Python package, for PYTHONPATH: beside that environment, so that it needs none of its dependencies. */
export const pythonNcnn = join(cache, `python-ncnn-${versions.python.ncnn}`);
/** ONNX files of other people, of packages of PyPI: the tests quantize them. */
export const onnxModels = join(cache, `onnx-models-${versions.onnxModels.version}`);
export const libtorch = process.env.LIBTORCH_ROOT || join(cache, `libtorch-${versions.libtorch.version}`);
const cudaFolder = `${libtorch}-cuda-${versions.libtorch.cuda.version}`;
/** The same libtorch, with the CUDA compiler, and the NVIDIA libraries that its CUDA half loads with their headers. */
export const cudaLibtorch = process.env.LIBTORCH_ROOT || cudaFolder;
/** The same without the libraries: code for CUDA can be compiled and linked with it, but not run. */
export const cudaCompileOnly = process.env.LIBTORCH_ROOT || `${cudaFolder}-compile-only`;
export const build = join(root, 'native', 'build');
/** Of the build for CUDA that is only compiled and linked, as a test. */
export const cudaBuild = join(root, 'native', 'build-cuda');
/** Of the C library for 64-bit ARM, whose tests run in an emulator. */
export const arm64Build = join(root, 'native', 'build-arm64');
/** Of the fuzzer, by Clang with sanitizers. */
export const fuzzBuild = join(root, 'native', 'build-fuzz');
/** Of the libraries and tests with sanitizers, by what these look for: memory or threads. */
export const sanitizedBuild = (kind) => join(root, 'native', `build-${kind}`);
/** The Node that package.json pins, in place once npm's packages are. */
export const node = join(root, 'node_modules', '.bin', 'node');
/** Environment of every program that the scripts start: the pinned Node first, then the cached tools. */
export const environment = {
  PATH: `${join(root, 'node_modules', '.bin')}:${tools}:${process.env.PATH}`,
  FACETRAIN_CACHE: cache,
};
