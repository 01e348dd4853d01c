/**
 * The two files of a network for ncnn while they are written: lines of `.param`, each a layer with its blobs and
 * parameters, and the weights of `.bin`, in the order of the layers.
 */
import { FacetrainError } from '@facetrain/api';
import { UniqueNames } from '../onnx/unique-names.ts';

/** Parameters of a layer by their number. ncnn reads one with a point or an exponent as real, others as integers. */
export type NcnnParameters = Record<number, number | string>;

/** The first line of each `.param`. */
const MAGIC = '7767517';
/** Before weights in `.bin`: their type. */
const [FLOAT32, INT8] = [0, 0x000d4b38];
/** A trained network has dead filters, whose tiny weights give denormal numbers. These slow ncnn down tenfold. */
const TINY = 1e-10;

export class NcnnFile {
  private readonly lines: string[] = [];
  private readonly data: Uint8Array[] = [];
  private blobs = 0;
  private readonly names = new UniqueNames([]);

  /** A name for a blob or a layer that nothing else has. ncnn separates names by spaces. */
  name(wanted: string): string {
    return this.names.take(wanted.replaceAll(/\s/g, '_') || 'blob');
  }

  layer(type: string, name: string, inputs: string[], outputs: string[], parameters: NcnnParameters): void {
    this.blobs += outputs.length;
    const pairs = Object.entries(parameters).map(([key, value]) => `${key}=${value}`);
    this.lines.push([type, name, inputs.length, outputs.length, ...inputs, ...outputs, ...pairs].join(' '));
  }

  /** Copies of a blob: one has one reader in ncnn. */
  split(blob: string, count: number): string[] {
    const outputs = Array.from({ length: count }, (_, i) => this.name(`${blob}_copy${i}`));
    this.layer('Split', this.name(`${blob}_split`), [blob], outputs, {});
    return outputs;
  }

  /** The main weights of the layer before. */
  weights(values: Float32Array | Int8Array): void {
    const type = Buffer.alloc(4);
    type.writeUInt32LE(values instanceof Int8Array ? INT8 : FLOAT32);
    this.data.push(type);
    if (values instanceof Float32Array) return this.floats(values);
    const padded = new Int8Array(Math.ceil(values.length / 4) * 4);
    padded.set(values);
    this.data.push(new Uint8Array(padded.buffer));
  }

  /** Its other numbers: bias, slopes, scales. */
  floats(values: Float32Array): void {
    this.data.push(new Uint8Array(values.map((value) => (Math.abs(value) < TINY ? 0 : value)).buffer));
  }

  contents(): { param: string; bin: Uint8Array } {
    const param = [MAGIC, `${this.lines.length} ${this.blobs}`, ...this.lines, ''].join('\n');
    return { param, bin: Buffer.concat(this.data) };
  }
}

/** A parameter that ncnn reads as a real number. */
export function real(value: number): string {
  const text = Math.fround(value).toExponential(8);
  return text.replace('e+', 'e');
}

export function unsupported(layer: string, found: string): FacetrainError {
  return new FacetrainError({
    code: 'UnsupportedOperator',
    subject: `layer "${layer}"`,
    found: `${found} has no counterpart in the files for ncnn`,
    allowed:
      'convolutions, fully connected layers, pools, batch norms, functions of single numbers, arithmetic of two ' +
      'tensors, Concat, ranges and shuffles of channels, Resize, ConvTranspose, Softmax and Transpose',
  });
}
