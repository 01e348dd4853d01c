// Benchmarks: `npm run bench -- pfc`, `-- int7` or `-- operator`; alone, all of them. Each prints a table and, last, one line of JSON, and compares with a named
// reference in the same run, by turns, so that whatever else the machine does hits both.
import { join } from 'node:path';
import { buildNative } from './build.mjs';
import { build, environment, node, root } from './lib/paths.mjs';
import { attached, main, run, SetupError, step } from './lib/steps.mjs';
import { setup } from './setup.mjs';

const benchmarks = {
  /** A Partial FC step beside the same mathematics in plain ATen. */
  async pfc(args) {
    await native();
    await step('Building pfc_bench', (show) => run(['cmake', '--build', build, '--target', 'pfc_bench'], { show }));
    return attached([join(build, 'pfc_bench'), ...args], { env: environment });
  },
  /** One picture through a pretrained MobileFaceNet: FP32 and INT7, ours and ONNX Runtime's. */
  async int7(args) {
    await native();
    return attached([node, join(root, 'bench', 'int7', 'int7-bench.ts'), ...args], { env: environment });
  },
  /** Pods, requests, memory and failover of the operator in a cluster without kubelets, beside plain POSTs of the same pods. */
  async operator(args) {
    await setup({ bench: true });
    await step('Bundling the operator', () =>
      run([node, join(root, 'operator', 'bundle.mjs'), join(root, 'operator', 'dist', 'bundle')]),
    );
    return attached([node, join(root, 'bench', 'operator', 'operator-bench.ts'), ...args], { env: environment });
  },
};

async function native() {
  await setup();
  await buildNative();
}

await main(async () => {
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
