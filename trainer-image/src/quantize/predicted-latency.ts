/**
 * An estimate of the time that one picture takes on one thread. Pure.
 *
 * On x86 it goes through the two networks of docs/benchmarks.md: so many milliseconds for each multiply-accumulate, and
 * so many for each value that a convolution or a fully connected layer stores, which costs requantization and a write.
 * A pretrained MobileFaceNet (221 M and 3.21 M) takes 1.8 ms with VNNI and 5.2 ms with AVX2 (both AMD EPYC), an
 * IResNet-50 (6,309 M and 5.87 M) 29.7 and 67.2 ms where its dense 3x3 layers of stride 1 (5,802 M) are not computed by
 * Winograd; with it 48.4 ms with AVX2. With VNNI it is 22.9 ms, but trained weights bring less than those random ones:
 * such layers are 1.28 times as fast in a pretrained ResNet.
 *
 * No processor with AVX-VNNI was at hand. Its kernels ran on that AMD EPYC of Zen 4 with vpdpbusd in the encoding of
 * AVX512-VL: the same instruction on the same sixteen registers of 256 bits. By turns with those of AVX512-VNNI the
 * MobileFaceNet took 1.38 times as long, the IResNet-50 1.13 times without Winograd and 1.12 times with it
 * (docs/benchmarks.md): 2.5, 33.5 and 25.6 ms. Zen 4 computes 512 bits of vpdpbusd a cycle either way.
 *
 * On ARM nothing was measured: cycles of the inner loops, by llvm-mca, without memory and without storing results.
 */
import type { PredictedLatency } from '@facetrain/api';
import type { Layer, LayerGraph } from '@facetrain/native';
import { elementCount, type Shape, tensorShapes } from './layer-shapes.ts';

const MEASURED = [
  { target: 'x86 with AVX512-VNNI', msPerGmac: 4.49, msPerWinogradGmac: 3.5, msPerMillionValues: 0.24 },
  { target: 'x86 with AVX-VNNI', msPerGmac: 4.9, msPerWinogradGmac: 3.83, msPerMillionValues: 0.43 },
  { target: 'x86 with AVX2', msPerGmac: 9.77, msPerWinogradGmac: 6.53, msPerMillionValues: 0.95 },
];

/** Cycles for 100 multiply-accumulates: dot products, also along rows; sums of 16 in int16, and tiles of 4x4 pixels. */
const SIMULATED = [
  { target: 'Cortex-A76 at 2 GHz, dot products', cyclesPer100Macs: 3.7, cyclesPer100WinogradMacs: 2.7 },
  { target: 'Cortex-A55 at 2 GHz, dot products', cyclesPer100Macs: 12.3, cyclesPer100WinogradMacs: 8.9 },
  { target: 'Cortex-A53 at 2 GHz', cyclesPer100Macs: 25, cyclesPer100WinogradMacs: 9.7 },
];
const HERTZ = 2e9;

/** @param macs of all layers, for one picture */
export function predictedLatency(graph: LayerGraph, macs: number): PredictedLatency[] {
  const shapes = tensorShapes(graph);
  let values = 0;
  let winogradMacs = 0;
  for (const layer of graph.layers) {
    if (layer.kind !== 'conv' && layer.kind !== 'fc') continue;
    const outputs = elementCount(shapes.get(layer.output)!);
    values += outputs;
    if (layer.kind === 'conv' && isForWinograd(layer, shapes.get(layer.input)!)) {
      winogradMacs += outputs * layer.weight.dims[1]! * 9;
    }
  }
  const rounded = (milliseconds: number) => Number(milliseconds.toPrecision(2));
  return [
    ...MEASURED.map(({ target, msPerGmac, msPerWinogradGmac, msPerMillionValues }) => ({
      target,
      milliseconds: rounded(
        (msPerGmac * (macs - winogradMacs) + msPerWinogradGmac * winogradMacs) / 1e9 +
          (msPerMillionValues * values) / 1e6,
      ),
      basis: 'measured' as const,
    })),
    ...SIMULATED.map(({ target, cyclesPer100Macs, cyclesPer100WinogradMacs }) => ({
      target,
      milliseconds: rounded(
        (((cyclesPer100Macs * (macs - winogradMacs) + cyclesPer100WinogradMacs * winogradMacs) / 100) * 1000) / HERTZ,
      ),
      basis: 'simulated' as const,
    })),
  ];
}

/** Whether Winograd serves the layer; for the smallest maps the runtime may decide otherwise, which is little. */
function isForWinograd({ weight, strides, dilations }: Extract<Layer, { kind: 'conv' }>, [channels]: Shape): boolean {
  const [, inputs, height, width] = weight.dims;
  return inputs === channels && height === 3 && width === 3 && [...strides, ...dilations].every((each) => each === 1);
}
