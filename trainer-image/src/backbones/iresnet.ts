/**
 * IResNet, the residual network of ArcFace, as in insightface's arcface_torch (backbones/iresnet.py): batch norm before
 * and after each convolution, no activation after the sum, a stem of stride 1, a linear layer on the last 7 x 7
 * positions.
 *
 *     stem     conv 3x3        64 x 112 x 112
 *     layer1   blocks[0]       64 x  56 x  56
 *     layer2   blocks[1]      128 x  28 x  28
 *     layer3   blocks[2]      256 x  14 x  14
 *     layer4   blocks[3]      512 x   7 x   7
 *     head     fc             embeddingDim
 */
import type { Graph } from '@facetrain/native';
import { GraphBuilder, type Value } from './builder.ts';
import { gaussian, noValues, torchLinear } from './initial-weights.ts';

/** Blocks in each stage, by depth. */
export const IRESNET_BLOCKS = {
  18: [2, 2, 2, 2],
  34: [3, 4, 6, 3],
  50: [3, 4, 14, 3],
  100: [3, 13, 30, 3],
  200: [6, 26, 60, 6],
};

const STEM_CHANNELS = 64;
const STAGE_CHANNELS = [64, 128, 256, 512];

export function iresnet({
  blocks,
  embeddingDim,
  seed,
}: {
  blocks: number[];
  embeddingDim: number;
  seed: number | null;
}): Graph {
  const kernels = seed === null ? noValues : gaussian(seed, 0.1);
  const linear = seed === null ? noValues : torchLinear(seed);
  const build = new GraphBuilder({ name: 'data', channels: 3, height: 112, width: 112 });

  function block(name: string, x: Value, channels: number, stride: number): Value {
    let y = build.batchNorm(`${name}.bn1`, x);
    y = build.conv(`${name}.conv1`, y, channels, { kernel: 3, padding: 1 }, kernels);
    y = build.batchNorm(`${name}.bn2`, y);
    y = build.prelu(`${name}.prelu`, y);
    y = build.conv(`${name}.conv2`, y, channels, { kernel: 3, padding: 1, stride }, kernels);
    y = build.batchNorm(`${name}.bn3`, y);
    if (stride === 1) return build.add(name, y, x);
    let shortcut = build.conv(`${name}.downsample.0`, x, channels, { kernel: 1, stride }, kernels);
    shortcut = build.batchNorm(`${name}.downsample.1`, shortcut);
    return build.add(name, y, shortcut);
  }

  let x = build.conv('conv1', build.input, STEM_CHANNELS, { kernel: 3, padding: 1 }, kernels);
  x = build.batchNorm('bn1', x);
  x = build.prelu('prelu', x);
  blocks.forEach((count, stage) => {
    for (let i = 0; i < count; i++) x = block(`layer${stage + 1}.${i}`, x, STAGE_CHANNELS[stage]!, i === 0 ? 2 : 1);
  });
  x = build.batchNorm('bn2', x);
  x = build.flatten('flatten', x, 7);
  x = build.linear('fc', x, embeddingDim, { weight: linear, bias: linear });
  // Its gamma stays at one: the executor does not train the gamma of a graph's last batch norm.
  x = build.batchNorm('features', x);
  return build.finish(x, 'embedding');
}
