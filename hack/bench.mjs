// Benchmarks: `npm run bench`. Each measures a named reference in the same run, by turns, so that other load slows
// both.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { ADDON, buildNative } from './build.mjs';
import { helpFirst } from './lib/arguments.mjs';
import { dockerEngine } from './lib/docker.mjs';
import * as needs from './lib/needs.mjs';
import { build, environment, node, root } from './lib/paths.mjs';
import { attached, main, run, SetupError, step } from './lib/steps.mjs';
import { setup } from './setup.mjs';

const USAGE = `Usage: npm run bench [-- pfc | accuracy | precision | head | train | data | int7 | int7-accuracy |
                            int7-arm | operator | restart [OPTION...]]

Runs all benchmarks, or one with its own options. Each prints a table and, as its last line, JSON.
`;

/**
 * The environment of a benchmark that computes with libtorch, and of its reference: that of the trainers' image.
 * glibc's malloc would slow both, the reference more; OpenMP threads that spin while they wait would take the other's
 * turn.
 */
function computing() {
  const allocator = '/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4';
  return {
    ...environment,
    ...(existsSync(allocator) && process.env.LD_PRELOAD === undefined ? { LD_PRELOAD: allocator } : {}),
    THP_MEM_ALLOC_ENABLE: '1',
    OMP_WAIT_POLICY: 'passive',
  };
}

/** Builds a benchmark in C++: with CUDA, where its arguments choose that device. */
async function nativeBenchmark(target, args) {
  const cuda = /--device[= ]cuda/.test(args.join(' '));
  await setup(['native', ...(cuda ? ['cuda'] : [])]);
  await buildNative({ targets: [target], cuda });
}

/** The option for the reference, where this machine's Python has its packages and the arguments do not name one. */
async function reference(args, packages = 'numpy, torch') {
  if (args.some((argument) => /^--reference(=|$)/.test(argument))) return [];
  const found = await run(['python3', '-c', `import ${packages}`]).then(
    () => true,
    () => false,
  );
  return found ? ['--reference', 'python3'] : [];
}

const benchmarks = {
  /** A Partial FC step, and the same in PyTorch as a user would write it. */
  async pfc(args) {
    await nativeBenchmark('pfc_bench', args);
    return attached([join(build, 'pfc_bench'), ...(await reference(args)), ...args], { env: computing() });
  },
  /** Accuracy by optimizer, precision and sample rate of the class centres, beside insightface's head. */
  async accuracy(args) {
    // Without a dataset there is nothing to measure: when all benchmarks run, it is left out.
    if (args.length === 0) return 0;
    await nativeBenchmark('accuracy_bench', args);
    await buildNative({ targets: [ADDON] });
    const script = join(root, 'bench', 'accuracy', 'accuracy-bench.ts');
    return attached([node, script, ...(await reference(args)), ...args], { env: computing() });
  },
  /** What identities that are added to a head, or removed, do to the accuracy of a network. */
  async head(args) {
    if (args.length === 0) return 0; // as `accuracy`
    await setup(['native']);
    await buildNative({ targets: [ADDON] });
    return attached([node, join(root, 'bench', 'head', 'head-bench.ts'), ...args], { env: environment });
  },
  /** What the precision of a training costs in accuracy. */
  async precision(args) {
    if (args.length === 0) return 0; // as `accuracy`
    const cuda = /--device[= ]cuda/i.test(args.join(' '));
    await setup(['native', ...(cuda ? ['cuda'] : [])]);
    await buildNative({ targets: [ADDON], cuda });
    return attached([node, join(root, 'bench', 'train', 'precision-accuracy.ts'), ...args], { env: computing() });
  },
  /** The training of a backbone, on a CPU or a GPU, and its forward and backward pass in eager PyTorch. */
  async train(args) {
    await nativeBenchmark('train_bench', args);
    return attached([join(build, 'train_bench'), ...(await reference(args, 'torch')), ...args], { env: computing() });
  },
  /** The loader: decoded pictures per second and core. Beside it the decoders alone, and OpenCV and Pillow. */
  async data(args) {
    await nativeBenchmark('data_bench', args);
    return attached([join(build, 'data_bench'), ...(await reference(args, 'cv2, PIL')), ...args], { env: environment });
  },
  /** Inference of one picture: FP32 and INT7, in native/, in ONNX Runtime and in ncnn. */
  async int7(args) {
    await setup(['native']);
    await buildNative({ targets: [ADDON] });
    const script = join(root, 'bench', 'int7', 'int7-bench.ts');
    return attached([node, script, ...(await reference(args, 'ncnn, numpy')), ...args], { env: environment });
  },
  /** Accuracy of INT7 beside FP32, in native/ and in ONNX Runtime, on pairs of people apart from the calibration. */
  async 'int7-accuracy'(args) {
    if (args.length === 0) return 0; // as `accuracy`
    await setup(['native']);
    await buildNative({ targets: [ADDON] });
    return attached([node, join(root, 'bench', 'int7', 'int7-accuracy.ts'), ...args], { env: environment });
  },
  /** Cycles of the INT7 runtime's loops on ARM, as llvm-mca schedules them. Nothing runs on ARM. */
  async 'int7-arm'() {
    await setup(needs.armBenchmark);
    return attached([node, join(root, 'bench', 'int7', 'arm-cycles.ts')], { env: environment });
  },
  /** The operator without kubelets: pods per second, requests, memory, failover; and plain POSTs of the same pods. */
  async operator(args) {
    await setup([...needs.operatorBenchmark, ...(args.includes('--jobset') ? ['jobset'] : [])]);
    await step('Bundling the operator', () =>
      run([node, join(root, 'operator', 'bundle.mjs'), join(root, 'operator', 'dist', 'bundle')]),
    );
    return attached([node, join(root, 'bench', 'operator', 'operator-bench.ts'), ...args], { env: environment });
  },
  /** How soon a gang trains again after the loss of a process or a node, on the cluster of e2e/. */
  async restart(args) {
    await setup(needs.paths.e2e);
    await dockerEngine();
    return attached([node, join(root, 'bench', 'restart', 'restart-bench.ts'), ...args], { env: environment });
  },
};

await main(async () => {
  helpFirst(USAGE);
  const [name, ...args] = process.argv.slice(2);
  if (name !== undefined && !Object.hasOwn(benchmarks, name))
    throw new SetupError(`${name}: no such benchmark; there are ${Object.keys(benchmarks).join(', ')}`);
  for (const [each, benchmark] of Object.entries(benchmarks)) {
    if (name !== undefined && each !== name) continue;
    const code = await benchmark(args);
    if (code !== 0) return code;
  }
  return 0;
});
