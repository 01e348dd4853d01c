/**
 * Random numbers for initial weights: element i of a tensor is a function of the seed, the tensor's name and i alone, so no tensor's
 * values depend on which others there are, or on their order.
 */

/** 2^32 divided by the golden ratio: multiples of it are far from each other. */
const GOLDEN = 0x9e3779b9;

/** 32 bits from 32 bits, each output bit depending on each input bit. The constants are those of Chris Wellons's lowbias32. */
function mix(value: number): number {
  let x = value | 0;
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return x ^ (x >>> 16);
}

/** The two keys of a tensor's stream: its name hashed from two starting points that the seed decides. */
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

/** Bits to [-1, 1). */
const signed = (value: number) => value / 2 ** 31 - 1;

/** Values of N(0, deviation^2), in pairs by Marsaglia's polar method: a point in the unit disc, found after 1.27 tries on average. */
export function normal(seed: number, name: string, count: number, deviation: number): Float32Array {
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
    // The last of an odd count has no partner; writing past the end does nothing.
    values[i + 1] = factor * y;
  }
  return values;
}

/** Values evenly spread over [-bound, bound). */
export function uniform(seed: number, name: string, count: number, bound: number): Float32Array {
  const [first, second] = keys(seed, name);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = bound * signed(bits(first, second, i));
  return values;
}
