/** The estimate of a picture's time. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { buildBackbone } from '../backbones/backbone.ts';
import { fold } from './fold.ts';
import { predictedLatency } from './predicted-latency.ts';

test('the estimate of IResNet-50 is what docs/benchmarks.md has measured, but for its random weights with VNNI', () => {
  const options = { backbone: 'iresnet50', embeddingDim: 512, width: 1, blocks: null, seed: 0 } as const;
  const found = predictedLatency(fold(buildBackbone(options)), 6.309e9);
  const of = (target: string) => found.find((each) => each.target === target)!;
  assert.ok(Math.abs(of('x86 with AVX512-VNNI').milliseconds - 24) < 1);
  assert.ok(Math.abs(of('x86 with AVX-VNNI').milliseconds - 27) < 1);
  assert.ok(Math.abs(of('x86 with AVX2').milliseconds - 48.4) < 1);
  assert.deepEqual(
    [...new Set(found.map(({ target, basis }) => `${target.split(/[- ]/)[0]} ${basis}`))],
    ['x86 measured', 'Cortex simulated'],
  );
});
