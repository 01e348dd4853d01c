/**
 * A rank's training session: the backbone's replica, this rank's class centres, the loader and the collectives, all
 * on one native thread. A session does single steps; the loop over them is in trainer-image/src/train/.
 */
import {
  BYTES_OF,
  counted,
  FacetrainError,
  type LossScale,
  type NormStatistics,
  type Precision,
  type RetiredClass,
  type RowsOptimizer,
  type RowsPlacement,
  type RowUpdate,
  type StageSeconds,
  type StoredType,
} from '@facetrain/api';
import { native } from './addon.ts';
import type { Pictures, UnusablePicture } from './data.ts';
import type { Embedder } from './embedder.ts';
import { EMBEDDING_BATCHES, embedInBatches } from './model.ts';
import { translateErrors } from './native-errors.ts';
import type { Graph } from './types.ts';

/**
 * The margin of the target logit. combined: cos(m1·θ + m2) − m3, which CosFace and ArcFace are cases of. sphereface
 * reads m1, adaface m and h; what a form does not read is ignored.
 */
export interface Margin {
  form: 'combined' | 'sphereface' | 'adaface';
  m1: number;
  m2: number;
  m3: number;
  m: number;
  h: number;
}

/**
 * Options of a session on one rank; apart from `comm`, they are the same on every rank. Names and units as in
 * api/src/trainer-config.ts, which also has the bounds; there are no defaults here.
 */
export interface TrainingOptions {
  /** Rank 0's initial weights are broadcast to the other ranks. */
  graph: Graph;
  seed: number;
  numClasses: number;
  margin: Margin;
  /** straightThrough: the gradient of the target is that of its cosine alone (native/pfc/margin.h). */
  gradient: 'exact' | 'straightThrough';
  scale: number;
  sampleRate: number;
  /** Other sample rates from steps on, by ascending step. */
  sampleRateChanges: { fromStep: number; rate: number }[];
  interclassFilter: number | null;
  /** Type in which class centres and their momentum are kept. */
  rowsPrecision: 'fp32' | 'bf16';
  rowsOptimizer: RowsOptimizer;
  /** auto: on the host, with CUDA on a device that has less memory than `rowsMemory` says; else on the device. */
  rowsPlacement: RowsPlacement | 'auto';
  /**
   * For auto on CUDA: what a device must have that holds the class centres, too; and what all ranks on a machine take
   * of its memory where they are there.
   */
  rowsMemory: { deviceBytes: number; hostBytes: number };
  /** dense: not with adamw. */
  rowUpdate: RowUpdate;
  /** The learning rate of class centres over that of the backbone. */
  rowsRateFactor: number;
  momentum: number;
  weightDecay: number;
  gradientClipNorm: number | null;
  /**
   * Pictures that go through the backbone at once; a rank's part of a batch is one or more of these micro-batches.
   * null: the whole part, which may then have any length.
   */
  microBatchSize: number | null;
  /** Computes activations twice instead of keeping them. */
  checkpointActivations: boolean;
  /** Batch norms take their statistics over the pictures of all ranks. Not with several micro-batches. */
  syncBatchNorm: boolean;
  data: {
    directory: string;
    globalBatchSize: number;
    flip: boolean;
    shift: number;
    /** Of what native/data/degrade.h does to a picture. */
    cropProbability: number;
    lowResolutionProbability: number;
    colorJitterProbability: number;
    channelOrder: 'rgb' | 'bgr';
    loaderThreads: number;
    /** Different pictures that a rank may replace because they cannot be used. */
    maxBadPictures: number;
  };
  /**
   * `localRank` counts the `localSize` ranks on this machine (or in this container); with CUDA, a rank uses the
   * device of that number. `gang` is the same on the ranks that belong together, and on no others: ranks of different
   * gangs that meet at one address do not join each other.
   */
  comm: {
    rank: number;
    size: number;
    gang: string;
    localRank: number;
    localSize: number;
    masterAddr: string;
    masterPort: number;
    rendezvousTimeoutMs: number;
    collectiveTimeoutMs: number;
  };
  computeThreads: number;
  /** `auto`: CUDA if this machine has a device for each of its ranks, otherwise the CPU. */
  device: 'auto' | 'cpu' | 'cuda';
  /** `auto`: by the device (resolve_precision in native/train/device.h). */
  precision: 'auto' | Precision;
  /** The same numbers in every run; otherwise cuDNN may take algorithms that are faster. */
  deterministic: boolean;
}

/** Flags that the step's all-reduce joins: true on every rank once any rank sets them. */
export interface Votes {
  stop?: boolean;
  checkpoint?: boolean;
  /** This rank has not written all of its part of a checkpoint. */
  writing?: boolean;
}

export interface StepResult {
  /** Mean over the global batch, the same on every rank. */
  loss: number;
  /** L2 norm of the backbone's gradient before clipping. */
  gradientNorm: number;
  /**
   * Of precision fp16: steps since the start of training that changed no weight, because a gradient overflowed.
   * Undefined for other precisions.
   */
  skippedSteps?: number;
  votes: Required<Votes>;
  /** Pictures of this rank that were replaced because they cannot be used, since the last step. */
  replaced: UnusablePicture[];
  /**
   * What each stage of a step took on this rank. With CUDA of an earlier step, and null when the device has finished
   * none since the last call.
   */
  stageSeconds: StageSeconds | null;
}

/** A tensor of class centres: the centres themselves, `weight`, or what their optimizer keeps, `momentum`. */
export interface RowTensor {
  name: string;
  dtype: StoredType;
  /** Numbers in a row. */
  columns: number;
}

/** Class centres with their optimizer's state, from `firstRow` (a global class id) on. */
export interface Rows {
  firstRow: number;
  rows: number;
  /** By name: `rows` rows of numbers of the type, little-endian. */
  tensors: Record<string, { dtype: StoredType; bytes: Uint8Array }>;
}

/** Parameters, buffers and the parameters' momentum by ONNX name. */
export interface BackboneState {
  tensors: Record<string, { dims: number[]; data: Float32Array }>;
  momentum: Record<string, { dims: number[]; data: Float32Array }>;
}

/** What a checkpoint is written from: a session between two steps, or a copy of it. */
export interface StateSource {
  saveBackbone(): Promise<BackboneState>;
  /** A copy of `rows` class centres with their optimizer's state; all must be this rank's. */
  saveRows(firstRow: number, rows: number): Promise<Rows>;
}

/** The state of one moment. It is read while the session trains on, and takes memory until it is closed. */
export interface StateCopy extends StateSource {
  close(): Promise<void>;
}

/** What is kept in memory of the state after `step` steps, with what the caller wants to know of it again. */
export interface KeptStep {
  step: number;
  /** At most 16 KiB. */
  note: string;
}

/** A training session as checkpoints and evaluation use it; their tests implement it without the native addon. */
export interface TrainingSessionContract extends Embedder, StateSource {
  readonly device: 'cpu' | 'cuda';
  readonly precision: Precision;
  /** Rows of the class centres that this rank holds. */
  readonly rowRange: { firstRow: number; rows: number };
  /** What a row consists of, in the order in which it is stored: `weight` first. */
  readonly rowTensors: readonly RowTensor[];
  /** Whose state the other tensors are. */
  readonly rowsOptimizer: RowsOptimizer;
  readonly stepsPerEpoch: number;
  /**
   * Trains one step. `step` is the global step number: it determines the pictures and the class sample. A number that
   * does not follow the last one restarts the loader, which is slow.
   * @throws FacetrainError NotANumber, on every rank and before any weight has changed; InvalidDataset; PeerLost
   */
  step(step: number, learningRate: number, votes?: Votes): Promise<StepResult>;
  /**
   * Computes later steps and embeddings in another precision.
   * @param lossScale of fp16; undefined: the first one
   * @throws FacetrainError InvalidConfig when the device has no such precision
   */
  usePrecision(precision: Precision, lossScale?: LossScale): Promise<void>;
  /** After the steps done; undefined unless the precision is fp16. */
  lossScale(): Promise<LossScale | undefined>;
  /** After the steps done, the same on every rank; undefined unless the margin is AdaFace. */
  normStatistics(): Promise<NormStatistics | undefined>;
  /** From which later steps go on. */
  useNormStatistics(statistics: NormStatistics): Promise<void>;
  /** Replaces the backbone's state; every tensor of the graph must be in `state`. */
  loadBackbone(state: BackboneState): Promise<void>;
  /**
   * All of rowTensors, or `weight` alone: then the state of the optimizer starts anew. Numbers of another type than the
   * session's are converted, to bfloat16 by rounding to the nearest.
   */
  loadRows(rows: Rows): Promise<void>;
  /**
   * Identities that later steps do not train: pictures of a removed one are replaced by others, those of a merged one
   * count as the other's. No step samples their class centres.
   */
  retire(classes: readonly RetiredClass[]): Promise<void>;
  /**
   * A copy of the state after the steps done, without the backbone if `backbone` is false. One at a time: the former
   * must be closed.
   * @returns null when there is no memory for it
   */
  copyState(options: { backbone: boolean }): Promise<StateCopy | null>;
  /**
   * Opens or makes a file in memory for the state of the last two steps (native/train/kept_steps.h).
   * @param identity of the training and this rank: what a file of another one holds is forgotten
   * @returns what a former process has kept, the newest first
   * @throws FacetrainError StorageFailed, DiskFull; InvalidConfig with dense updates
   */
  openKeptSteps(path: string, identity: string): Promise<KeptStep[]>;
  /** Keeps the state after `step` steps, and forgets all others. @throws FacetrainError as openKeptSteps */
  keepAll({ step, note }: KeptStep): Promise<void>;
  /** The same for the step after the one that was kept or recalled last, which stays. */
  keep({ step, note }: KeptStep): Promise<void>;
  /**
   * Goes back to a state that every rank has kept, for a session with the same precision and retired classes. A
   * collective: to be called on every rank.
   */
  recall(step: number): Promise<void>;
  /** The graph with its trained weights. */
  exportGraph(): Promise<Graph>;
  /** Concatenates every rank's values in rank order; lengths may differ. */
  allGather(values: Float32Array): Promise<Float32Array[]>;
  /** Resolves when every rank has called it. @throws FacetrainError PeerLost */
  barrier(): Promise<void>;
}

interface NativeSession {
  /** microBatchSize 0: a rank's whole part of a batch. */
  open(options: TrainingOptions & { microBatchSize: number }): Promise<{
    device: 'cpu' | 'cuda';
    precision: Precision;
    rowsPlacement: RowsPlacement;
    firstRow: number;
    rows: number;
    rowTensors: RowTensor[];
    stepsPerEpoch: number;
  }>;
  step(step: number, learningRate: number, stop: boolean, checkpoint: boolean, writing: boolean): Promise<StepResult>;
  embed(pixels: Uint8Array, height: number, width: number, channels: number, flip: boolean): Promise<Float32Array>;
  usePrecision(precision: Precision, lossScale?: LossScale): Promise<void>;
  lossScale(): Promise<LossScale | undefined>;
  normStatistics(): Promise<NormStatistics | undefined>;
  useNormStatistics(statistics: NormStatistics): Promise<void>;
  saveBackbone(): Promise<BackboneState>;
  loadBackbone(state: BackboneState): Promise<void>;
  /** Here `first` counts from this rank's first row. */
  saveRows(first: number, count: number): Promise<Rows['tensors']>;
  loadRows(first: number, count: number, tensors: Rows['tensors']): Promise<void>;
  retire(classes: number[], into: number[]): Promise<void>;
  copyState(backbone: boolean): Promise<boolean>;
  copiedBackbone(): Promise<BackboneState>;
  copiedRows(first: number, count: number): Promise<Rows['tensors']>;
  dropCopy(): Promise<void>;
  openKeptSteps(path: string, identity: string): Promise<KeptStep[]>;
  keepAll(step: number, note: string): Promise<void>;
  keep(step: number, note: string): Promise<void>;
  recall(step: number): Promise<void>;
  allGather(values: Float32Array): Promise<Float32Array[]>;
  barrier(): Promise<void>;
  close(): Promise<void>;
}

/** kRemoved of native/data/loader.h. */
const REMOVED = -1;

const addon = native<{
  TrainingSession: new () => NativeSession;
  capabilities(): Capabilities;
  awaited(): string;
}>();

/** Which devices this build of the addon supports, how many this machine has, and what its CPU can do. */
export interface Capabilities {
  /** True in a build with CUDA and NCCL; others train on CPUs only. */
  nccl: boolean;
  cudaDevices: number;
  /** How this CPU multiplies bfloat16, on which the bits of such products depend; `emulated`: with other numbers. */
  bf16: 'amx' | 'avx512bf16' | 'emulated';
}

/** The capabilities of this build on this machine. */
export function capabilities(): Capabilities {
  return addon.capabilities();
}

/**
 * Whom this process waits for in TrainingSession.open(): "rank 0 at HOST:PORT: Connection refused", "ranks 1, 2 to come
 * to HOST:PORT". Empty while it waits for nobody.
 */
export function awaited(): string {
  return addon.awaited();
}

/** The native training session (native/train/session.h). Calls run one after the other on its own thread. */
export class TrainingSession implements TrainingSessionContract {
  readonly dim: number;
  readonly device: 'cpu' | 'cuda';
  readonly rowRange: { firstRow: number; rows: number };
  readonly rowTensors: readonly RowTensor[];
  readonly rowsOptimizer: RowsOptimizer;
  readonly rowsPlacement: RowsPlacement;
  readonly stepsPerEpoch: number;
  #precision: Precision;
  readonly #graph: Graph;
  readonly #native: NativeSession;
  #copied = false;

  private constructor(
    { graph, rowsOptimizer }: TrainingOptions,
    session: NativeSession,
    opened: Awaited<ReturnType<NativeSession['open']>>,
  ) {
    this.dim = graph.output.dim;
    this.rowsOptimizer = rowsOptimizer;
    this.device = opened.device;
    this.#precision = opened.precision;
    this.rowRange = { firstRow: opened.firstRow, rows: opened.rows };
    this.rowTensors = opened.rowTensors;
    this.rowsPlacement = opened.rowsPlacement;
    this.stepsPerEpoch = opened.stepsPerEpoch;
    this.#graph = graph;
    this.#native = session;
  }

  /**
   * Plans the graph, opens the dataset, and connects to the other ranks.
   * @throws FacetrainError InvalidModel, UnsupportedOperator, InvalidDataset, InvalidConfig (a device that this build
   *   or this machine lacks), RendezvousTimeout
   */
  static async open(options: TrainingOptions): Promise<TrainingSession> {
    const { globalBatchSize } = options.data;
    const { microBatchSize, comm } = options;
    const refuse = (subject: string, found: string, allowed: string) =>
      new FacetrainError({ code: 'InvalidConfig', subject, found, allowed });
    if (globalBatchSize < comm.size)
      throw refuse('data.globalBatchSize', String(globalBatchSize), `a picture for each of the ${comm.size} ranks`);
    if (microBatchSize !== null) {
      const count = globalBatchSize / microBatchSize;
      if (!Number.isInteger(count) || count < comm.size) {
        throw refuse(
          'microBatchSize',
          String(microBatchSize),
          `a divisor of the ${globalBatchSize} pictures of a step, with a micro-batch for each of the ` +
            `${comm.size} ranks`,
        );
      }
      if (options.syncBatchNorm && count !== comm.size) {
        throw refuse(
          'microBatchSize',
          `${microBatchSize}, with syncBatchNorm`,
          'one micro-batch on each rank, as a batch norm over all pictures of a step needs them at the same time',
        );
      }
    }
    const session = new addon.TrainingSession();
    try {
      const native = { ...options, microBatchSize: microBatchSize ?? 0 };
      return new TrainingSession(options, session, await translateErrors(() => session.open(native)));
    } catch (error) {
      await session.close();
      throw error;
    }
  }

  async step(
    step: number,
    learningRate: number,
    { stop = false, checkpoint = false, writing = false }: Votes = {},
  ): Promise<StepResult> {
    return await translateErrors(() => this.#native.step(step, learningRate, stop, checkpoint, writing));
  }

  get batch(): number {
    return EMBEDDING_BATCHES[this.device];
  }

  async embed(pictures: Pictures, options: Parameters<Embedder['embed']>[1] = {}): Promise<Float32Array> {
    return await embedInBatches(this.#native, this.#graph, pictures, options, this.device);
  }

  get precision(): Precision {
    return this.#precision;
  }

  async usePrecision(precision: Precision, lossScale?: LossScale): Promise<void> {
    await translateErrors(() => this.#native.usePrecision(precision, lossScale));
    this.#precision = precision;
  }

  async lossScale(): Promise<LossScale | undefined> {
    return await translateErrors(() => this.#native.lossScale());
  }

  async normStatistics(): Promise<NormStatistics | undefined> {
    return await translateErrors(() => this.#native.normStatistics());
  }

  async useNormStatistics(statistics: NormStatistics): Promise<void> {
    await translateErrors(() => this.#native.useNormStatistics(statistics));
  }

  async saveBackbone(): Promise<BackboneState> {
    return await translateErrors(() => this.#native.saveBackbone());
  }

  /**
   * @throws FacetrainError InvalidCheckpoint, before anything is changed, when a tensor is missing, is not in the
   *   graph, or has another shape
   */
  async loadBackbone(state: BackboneState): Promise<void> {
    const own = await this.saveBackbone();
    for (const part of ['tensors', 'momentum'] as const) {
      const refuse = (name: string, found: string, allowed: string) =>
        new FacetrainError({ code: 'InvalidCheckpoint', subject: `backbone, ${part} '${name}'`, found, allowed });
      for (const [name, { dims }] of Object.entries(own[part])) {
        const tensor = state[part][name];
        if (!tensor) throw refuse(name, 'missing', 'every tensor of the model');
        if (tensor.dims.join() !== dims.join())
          throw refuse(name, `shape [${tensor.dims.join(', ')}]`, `[${dims.join(', ')}], as in the model`);
        const size = dims.reduce((product, dim) => product * dim, 1);
        if (tensor.data.length !== size) throw refuse(name, counted(tensor.data.length, 'number'), `${size}`);
      }
      for (const name of Object.keys(state[part])) {
        if (!(name in own[part])) throw refuse(name, 'the model has no such tensor', 'a checkpoint of the same model');
      }
    }
    await translateErrors(() => this.#native.loadBackbone(state));
  }

  /** @throws FacetrainError InvalidArgument when a row belongs to another rank */
  async saveRows(firstRow: number, rows: number): Promise<Rows> {
    const first = this.#localRow(firstRow, rows);
    return { firstRow, rows, tensors: await translateErrors(() => this.#native.saveRows(first, rows)) };
  }

  /**
   * @throws FacetrainError InvalidArgument when a row belongs to another rank, or a tensor is missing (unless `weight`
   *   is alone), is not one of rowTensors, or has another size
   */
  async loadRows({ firstRow, rows, tensors }: Rows): Promise<void> {
    const first = this.#localRow(firstRow, rows);
    const refuse = (subject: string, found: string, allowed: string) =>
      new FacetrainError({ code: 'InvalidArgument', subject, found, allowed });
    const isAlone = Object.keys(tensors).join() === 'weight';
    const loaded = { ...tensors };
    for (const { name, dtype, columns } of this.rowTensors) {
      // Every optimizer begins with zeros.
      if (isAlone) loaded[name] ??= { dtype, bytes: new Uint8Array(rows * columns * BYTES_OF[dtype]) };
      const values = loaded[name];
      if (!values) throw refuse(name, 'missing', 'every tensor of the class centres');
      const numbers = values.bytes.length / BYTES_OF[values.dtype];
      if (numbers !== rows * columns)
        throw refuse(name, `${counted(numbers, 'number')} for ${counted(rows, 'row')}`, `${rows} x ${columns}`);
    }
    for (const name of Object.keys(tensors)) {
      if (!this.rowTensors.some((tensor) => tensor.name === name))
        throw refuse(name, 'no tensor of the class centres', this.rowTensors.map((tensor) => tensor.name).join(', '));
    }
    await translateErrors(() => this.#native.loadRows(first, rows, loaded));
  }

  async retire(classes: readonly RetiredClass[]): Promise<void> {
    const into = classes.map((each) => each.into ?? REMOVED);
    await translateErrors(() =>
      this.#native.retire(
        classes.map((each) => each.class),
        into,
      ),
    );
  }

  async copyState({ backbone }: { backbone: boolean }): Promise<StateCopy | null> {
    if (this.#copied) throw new Error('the former copy is not closed');
    this.#copied = await translateErrors(() => this.#native.copyState(backbone));
    if (!this.#copied) return null;
    return {
      saveBackbone: () => translateErrors(() => this.#native.copiedBackbone()),
      saveRows: async (firstRow, rows) => {
        const first = this.#localRow(firstRow, rows);
        return { firstRow, rows, tensors: await translateErrors(() => this.#native.copiedRows(first, rows)) };
      },
      close: async () => {
        await this.#native.dropCopy();
        this.#copied = false;
      },
    };
  }

  async openKeptSteps(path: string, identity: string): Promise<KeptStep[]> {
    return await translateErrors(() => this.#native.openKeptSteps(path, identity));
  }

  async keepAll({ step, note }: KeptStep): Promise<void> {
    await translateErrors(() => this.#native.keepAll(step, note));
  }

  async keep({ step, note }: KeptStep): Promise<void> {
    await translateErrors(() => this.#native.keep(step, note));
  }

  async recall(step: number): Promise<void> {
    await translateErrors(() => this.#native.recall(step));
  }

  async exportGraph(): Promise<Graph> {
    const { tensors } = await this.saveBackbone();
    return { ...this.#graph, initializers: { ...this.#graph.initializers, ...tensors } };
  }

  async allGather(values: Float32Array): Promise<Float32Array[]> {
    return await translateErrors(() => this.#native.allGather(values));
  }

  async barrier(): Promise<void> {
    await translateErrors(() => this.#native.barrier());
  }

  async close(): Promise<void> {
    await this.#native.close();
  }

  /** Converts a global row to one that counts from this rank's first. */
  #localRow(firstRow: number, rows: number): number {
    const first = firstRow - this.rowRange.firstRow;
    if (
      !(
        Number.isInteger(first) &&
        Number.isInteger(rows) &&
        first >= 0 &&
        rows >= 0 &&
        first + rows <= this.rowRange.rows
      )
    ) {
      throw new FacetrainError({
        code: 'InvalidArgument',
        subject: 'rows',
        found: `${firstRow} to ${firstRow + rows}`,
        allowed: `${this.rowRange.firstRow} to ${this.rowRange.firstRow + this.rowRange.rows}, those of this rank`,
      });
    }
    return first;
  }
}
