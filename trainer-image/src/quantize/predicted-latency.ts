/**
 * An estimate of the time that one picture takes on one thread. Pure.
 *
 * On x86 it is a line through the two networks of docs/benchmarks.md: so many milliseconds for each
 * multiply-accumulate, and so many for each value that a convolution or a fully connected layer stores, which costs
 * requantization and a write. A pretrained MobileFaceNet (221 M and 3.21 M) takes 1.6 ms with VNNI and 4.1 ms with
 * AVX2, an IResNet-50 (6,309 M and 5.87 M) 23.6 and 61 ms, on a server of 2023 (Intel Xeon).
 *
 * On ARM nothing was measured: cycles of the inner loops, by llvm-mca, without memory and without storing results.
 */
import type { PredictedLatency } from '@facetrain/api';
import type { LayerGraph } from '@facetrain/native';
import { elementCount, tensorShapes } from './layer-shapes.ts';

const MEASURED = [
  { target: 'x86 with AVX512-VNNI', msPerGmac: 3.5, msPerMillionValues: 0.26 },
  { target: 'x86 with AVX2', msPerGmac: 9.06, msPerMillionValues: 0.65 },
];

/** Cycles for 100 multiply-accumulates: sums of 16 products in int16, and dot products. */
const SIMULATED = [
  { target: 'Cortex-A76 at 2 GHz, dot products', cyclesPer100Macs: 3.7 },
  { target: 'Cortex-A55 at 2 GHz', cyclesPer100Macs: 27.3 },
  { target: 'Cortex-A53 at 2 GHz', cyclesPer100Macs: 25.1 },
];
const HERTZ = 2e9;

/** @param macs of all layers, for one picture */
export function predictedLatency(graph: LayerGraph, macs: number): PredictedLatency[] {
  const shapes = tensorShapes(graph);
  const values = graph.layers.reduce(
    (sum, { kind, output }) => (kind === 'conv' || kind === 'fc' ? sum + elementCount(shapes.get(output)!) : sum),
    0,
  );
  const rounded = (milliseconds: number) => Number(milliseconds.toPrecision(2));
  return [
    ...MEASURED.map(({ target, msPerGmac, msPerMillionValues }) => ({
      target,
      milliseconds: rounded((msPerGmac * macs) / 1e9 + (msPerMillionValues * values) / 1e6),
      basis: 'measured' as const,
    })),
    ...SIMULATED.map(({ target, cyclesPer100Macs }) => ({
      target,
      milliseconds: rounded(((cyclesPer100Macs / 100) * macs * 1000) / HERTZ),
      basis: 'simulated' as const,
    })),
  ];
}
