/**
 * The distributions of initial weights. Each returns an Initializer, which makes one tensor's values.
 *
 * Element i of a tensor is a function of the seed, the tensor's name and i alone. So no tensor's values depend on which
 * other tensors there are, or on their order.
 */

/** What an initial distribution may depend on. `fanIn` and `fanOut` are torch's: channels times the kernel's area. */
export interface WeightTensor {
  name: string;
  count: number;
  fanIn: number;
  fanOut: number;
}

export type Initializer = (weight: WeightTensor) => Float32Array;

/** No values: of a graph of which only the shapes matter. */
export const noValues: Initializer = () => new Float32Array(0);

/** N(0, deviation^2). */
export function gaussian(seed: number, deviation: number): Initializer {
  return ({ name, count }) => normal(seed, name, count, deviation);
}

/** torch's kaiming_normal_ with mode fan_out, for ReLU. */
export function kaimingNormal(seed: number): Initializer {
  return ({ name, count, fanOut }) => normal(seed, name, count, Math.sqrt(2 / fanOut));
}

/** The default of torch's Linear, for weight and bias: kaiming_uniform_ with a = sqrt(5). */
export function torchLinear(seed: number): Initializer {
  return ({ name, count, fanIn }) => uniform(seed, name, count, 1 / Math.sqrt(fanIn));
}

/** A batch norm that changes nothing. */
export const BATCH_NORM_START = { weight: 1, bias: 0, running_mean: 0, running_var: 1 };
/** torch's initial slope of a PReLU. */
export const PRELU_START = 0.25;

/** 2^32 divided by the golden ratio: its multiples are far from each other. */
const GOLDEN = 0x9e3779b9;

/** A hash of 32 bits in which each output bit depends on each input bit: Chris Wellons's lowbias32. */
function mix(value: number): number {
  let x = value | 0;
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return x ^ (x >>> 16);
}

/** The two keys of a tensor's random numbers: its name, hashed from two starting points that depend on the seed. */
function keys(seed: number, name: string): [number, number] {
  let first = mix(seed);
  let second = mix(first ^ GOLDEN);
  for (const byte of Buffer.from(name)) {
    first = mix(first ^ byte);
    second = mix(second + byte);
  }
  return [first, second];
}

const bits = (first: number, second: number, index: number) => mix(mix(first + index) ^ second) >>> 0;

/** 32 bits as a number in [-1, 1). */
const signed = (value: number) => value / 2 ** 31 - 1;

/**
 * Values of N(0, deviation^2), in pairs, by Marsaglia's polar method. It draws points in a square until one is in the
 * unit disc, 1.27 times on average.
 */
function normal(seed: number, name: string, count: number, deviation: number): Float32Array {
  const [first, second] = keys(seed, name);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    let x: number, y: number, square: number;
    let key = second;
    do {
      x = signed(bits(first, key, i));
      y = signed(bits(first, key, i + 1));
      square = x * x + y * y;
      key = (key + GOLDEN) | 0;
    } while (square >= 1 || square === 0);
    const factor = deviation * Math.sqrt((-2 * Math.log(square)) / square);
    values[i] = factor * x;
    // With an odd count, the last write is past the end and does nothing.
    values[i + 1] = factor * y;
  }
  return values;
}

/** Values of the uniform distribution over [-bound, bound). */
function uniform(seed: number, name: string, count: number, bound: number): Float32Array {
  const [first, second] = keys(seed, name);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = bound * signed(bits(first, second, i));
  return values;
}
