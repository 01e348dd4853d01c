// What must be installed, beside npm packages, to test and check each part of this repository.
import { SetupError } from './steps.mjs';

/*
 * A need is the name of a program of goTools in hack/versions.json, or one of
 *   native    the compiler and libraries of Debian, and libtorch; tests of TypeScript then use the addon
 *   arm64     a cross compiler and an emulator for 64-bit ARM
 *   clang     a compiler with libFuzzer and sanitizers
 *   llvm-mca  a model of processors' pipelines
 *   linters   clang-format, clang-tidy, shellcheck
 *   python    Python packages that check ONNX files
 *   cuda      the CUDA compiler and libraries (only `npm run setup -- --cuda`)
 *   cuda-compile-only   the CUDA compiler and headers, without libraries
 */
const controlPlane = ['etcd', 'kube-apiserver'];
const cluster = [...controlPlane, 'kube-controller-manager', 'kube-scheduler'];

/** For the tests in each folder, or in one file. The longest path that matches a file decides. */
export const paths = {
  hack: [],
  api: ['crdcheck'],
  planner: [],
  native: ['native'],
  operator: [...cluster, 'kueue'],
  'trainer-image': ['native', 'python', 'versitygw'],
  'trainer-image/src/backbones': ['native', 'python'],
  'trainer-image/src/checkpoint': [],
  'trainer-image/src/program': ['native'],
  'trainer-image/src/report': ['native'],
  'trainer-image/src/storage': ['versitygw'],
  'trainer-image/src/train/history.test.ts': [],
  'trainer-image/src/train/schedule.test.ts': ['native'],
  'trainer-image/src/train/start-times.test.ts': [],
  'trainer-image/src/verification': ['native'],
  cli: ['native'],
  'cli/src/kubectl': ['versitygw', ...controlPlane],
  'cli/src/local': ['native'],
  'cli/src/manifest.test.ts': [],
  'cli/src/terminal-output.test.ts': [],
  install: ['helm', 'glua', 'kubectl', ...controlPlane, 'kueue'],
  'install/src/api-reference.test.ts': [],
  'install/src/kustomize.test.ts': ['kubectl'],
  'install/src/monitoring.test.ts': ['helm', 'rulecheck'],
  bench: [],
  'bench/common': ['native'],
  'deploy/pulumi': ['helm', ...controlPlane],
  e2e: ['helm', 'versitygw', ...cluster, 'kubelet', 'kube-proxy', 'kubectl', 'coredns', 'kueue'],
  'e2e/cuda-image.test.ts': [],
  'e2e/soak': ['versitygw', ...cluster, 'kueue'],
};

/** For `npm run lint`: clang-tidy reads the compile commands of native/, and helm renders deploy/. */
export const lint = ['linters', 'native', 'helm'];

/** For the C library on 64-bit ARM; `native` for CMake and Ninja. */
export const arm64 = ['native', 'arm64'];

/** For the fuzzer of the C library's reader. */
export const fuzz = ['native', 'clang'];

/** For compiling and linking the code for CUDA. */
export const cuda = ['native', 'cuda-compile-only'];

/** For `npm run bench -- int7-arm`. */
export const armBenchmark = ['arm64', 'llvm-mca'];

/** For `npm run bench -- operator`. */
export const operatorBenchmark = [...cluster, 'kubectl', 'kwok'];

/** For all of `npm test`. */
export const tests = [...new Set([...Object.values(paths).flat(), ...lint, ...arm64, ...fuzz, ...cuda])];

/** @returns {string[]} what the tests in a file need */
export function ofFile(file) {
  const [path] = Object.keys(paths)
    .filter((each) => file === each || file.startsWith(`${each}/`))
    .sort((a, b) => b.length - a.length);
  if (path === undefined) throw new SetupError(`${file}: hack/lib/needs.mjs has no entry for the tests of its folder`);
  return paths[path];
}
