/** EasyQuant (arXiv 2006.16669) and the INT7 runtime, on a LayerGraph. */
import type { LayerGraph, Scales } from './types.ts';

export interface SearchOptions {
  rounds: number;
  candidates: number;
  lower: number;
  upper: number;
  equalize: boolean;
  biasCorrection: boolean;
  computeThreads: number;
  signal?: AbortSignal;
  onProgress?: (progress: { stage: 'equalizing' | 'searching'; done: number; total: number }) => void;
}

/** What the search found out about a layer; names as in api's QuantizedLayer. */
export interface LayerResult {
  name: string;
  bits: 7 | 8 | 32;
  macs: number;
  cosineStart: number;
  cosine: number;
  inputScale: number | null;
  saturation: number;
  weightSumMax: number | null;
}

export interface SearchResult {
  /** The layers whose integers `scales` holds: equalised, so in FP32 the same function as those given. Bias correction is in `scales.biases` alone. */
  graph: LayerGraph;
  scales: Scales;
  layers: LayerResult[];
}
