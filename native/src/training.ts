/**
 * A rank's training session: the backbone's replica, this rank's class centres, the loader and the collectives, all on one native thread.
 * The loop itself is the trainer's (trainer-image/src/train/); a session knows one step.
 */
import type { Embedder } from './embedder.ts';
import type { Graph } from './types.ts';

export interface TrainingOptions {
  /** Its initial weights count on rank 0; the others receive them. */
  graph: Graph;
  seed: number;
  numClasses: number;
  margin: { m1: number; m2: number; m3: number };
  scale: number;
  sampleRate: number;
  interclassFilter: number | null;
  momentum: number;
  weightDecay: number;
  gradientClipNorm: number | null;
  data: { directory: string; globalBatchSize: number; flip: boolean; shift: number; channelOrder: 'rgb' | 'bgr'; loaderThreads: number };
  comm: { rank: number; size: number; masterAddr: string; masterPort: number; rendezvousTimeoutMs: number; collectiveTimeoutMs: number };
  computeThreads: number;
  device: 'auto' | 'cpu' | 'cuda';
}

/** What ranks agree on with the step's own all-reduce: true on every rank as soon as it is true on one. */
export interface Votes {
  stop?: boolean;
  checkpoint?: boolean;
}

export interface StepResult {
  /** Mean over the global batch, the same on every rank. */
  loss: number;
  /** L2 norm of the backbone's gradient before clipping. */
  gradientNorm: number;
  votes: Required<Votes>;
}

/** Class centres [rows, dim] and their momentum, from `firstRow` (a global class id) on. */
export interface Rows {
  firstRow: number;
  rows: number;
  weight: Float32Array;
  momentum: Float32Array;
}

/** Parameters, buffers and the parameters' momentum by ONNX name. */
export interface BackboneState {
  tensors: Record<string, { dims: number[]; data: Float32Array }>;
  momentum: Record<string, { dims: number[]; data: Float32Array }>;
}

export interface TrainingSessionContract extends Embedder {
  readonly device: string;
  /** Rows of the class centres that this rank holds. */
  readonly rowRange: { firstRow: number; rows: number };
  readonly stepsPerEpoch: number;
  /** The step's number decides its pictures and its sample. Steps must follow each other; a gap starts the loader again. */
  step(step: number, learningRate: number, votes?: Votes): Promise<StepResult>;
  saveBackbone(): Promise<BackboneState>;
  loadBackbone(state: BackboneState): Promise<void>;
  /** A part of this rank's rows. */
  saveRows(firstRow: number, rows: number): Promise<Rows>;
  loadRows(rows: Rows): Promise<void>;
  /** The graph with its trained weights. */
  exportGraph(): Promise<Graph>;
  /** Concatenates every rank's values in rank order; lengths may differ. */
  allGather(values: Float32Array): Promise<Float32Array[]>;
  barrier(): Promise<void>;
}
