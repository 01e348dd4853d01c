/**
 * MobileFaceNet as in insightface's arcface_torch (backbones/mobilefacenet.py), wider than the paper's (arXiv
 * 1804.07573). w is the width:
 *
 *     0          conv 3x3, stride 2                            64w x 56 x 56
 *     1          grouped conv 3x3, or blocks[0] bottlenecks    64w x 56 x 56
 *     2          bottleneck, stride 2                          64w x 28 x 28
 *     3          blocks[1] bottlenecks                         64w x 28 x 28
 *     4          bottleneck, stride 2                         128w x 14 x 14
 *     5          blocks[2] bottlenecks                        128w x 14 x 14
 *     6          bottleneck, stride 2                         128w x  7 x  7
 *     7          blocks[3] bottlenecks                        128w x  7 x  7
 *     conv_sep   conv 1x1                                      512 x  7 x  7
 *     features   depthwise conv 7x7, linear                   embeddingDim
 *
 * The inner channels of a bottleneck do not depend on the width.
 */
import type { Graph } from '@facetrain/native';
import { type ConvOptions, GraphBuilder, type Value } from './builder.ts';
import { kaimingNormal, noValues } from './initial-weights.ts';

export const MOBILEFACENET_BLOCKS = [1, 4, 6, 2];

const HEAD_CHANNELS = 512;

export function mobilefacenet({
  blocks,
  width,
  embeddingDim,
  seed,
}: {
  blocks: number[];
  width: number;
  embeddingDim: number;
  seed: number | null;
}): Graph {
  const kernels = seed === null ? noValues : kaimingNormal(seed);
  const build = new GraphBuilder({ name: 'data', channels: 3, height: 112, width: 112 });

  function linearBlock(name: string, x: Value, channels: number, options: ConvOptions): Value {
    return build.batchNorm(`${name}.layers.1`, build.conv(`${name}.layers.0`, x, channels, options, kernels));
  }

  function convBlock(name: string, x: Value, channels: number, options: ConvOptions): Value {
    return build.prelu(`${name}.layers.2`, linearBlock(name, x, channels, options));
  }

  function bottleneck(name: string, x: Value, inner: number, channels: number, stride: number): Value {
    let y = convBlock(`${name}.layers.0`, x, inner, { kernel: 1 });
    y = convBlock(`${name}.layers.1`, y, inner, { kernel: 3, padding: 1, stride, groups: inner });
    return linearBlock(`${name}.layers.2`, y, channels, { kernel: 1 });
  }

  function residual(name: string, x: Value, inner: number, count: number): Value {
    for (let i = 0; i < count; i++) {
      const block = `${name}.layers.${i}`;
      x = build.add(block, x, bottleneck(block, x, inner, x.channels, 1));
    }
    return x;
  }

  const [narrow, wide] = [64 * width, 128 * width];
  let x = convBlock('layers.0', build.input, narrow, { kernel: 3, padding: 1, stride: 2 });
  x =
    blocks[0] === 1
      ? convBlock('layers.1', x, narrow, { kernel: 3, padding: 1, groups: 64 })
      : residual('layers.1', x, 128, blocks[0]!);
  x = bottleneck('layers.2', x, 128, narrow, 2);
  x = residual('layers.3', x, 128, blocks[1]!);
  x = bottleneck('layers.4', x, 256, wide, 2);
  x = residual('layers.5', x, 256, blocks[2]!);
  x = bottleneck('layers.6', x, 512, wide, 2);
  x = residual('layers.7', x, 256, blocks[3]!);
  x = convBlock('conv_sep', x, HEAD_CHANNELS, { kernel: 1 });
  x = linearBlock('features.layers.0', x, HEAD_CHANNELS, { kernel: 7, groups: HEAD_CHANNELS });
  x = build.flatten('features.layers.1', x, 1);
  x = build.linear('features.layers.2', x, embeddingDim, { weight: kernels });
  x = build.batchNorm('features.layers.3', x);
  return build.finish(x, 'embedding');
}
