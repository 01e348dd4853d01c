/**
 * The Python functions and classes that verification sets refer to, done here without Python: `_codecs.encode` and
 * NumPy's arrays of bytes. NumPy's state: numpy/core/src/multiarray/methods.c (array_reduce, array_reduce_ex).
 */
import { ByteArray, DataType, Global, NotUnderstood, type PickleValue, Text, Tuple } from './pickle-values.ts';

/** The Python names that a set may refer to, with our names of them. All others are refused. */
const KNOWN_NAMES = new Map<string, string>([
  ['_codecs.encode', 'encode'],
  ['numpy.ndarray', 'ndarray'],
  ['numpy.dtype', 'dtype'],
  ...['numpy.core', 'numpy._core'].flatMap((core): [string, string][] => [
    [`${core}.multiarray._reconstruct`, 'reconstruct'],
    [`${core}.numeric._frombuffer`, 'frombuffer'],
  ]),
]);

/** @throws NotUnderstood for any name but the known ones */
export function knownGlobal(name: string): Global {
  const known = KNOWN_NAMES.get(name);
  if (known === undefined) throw new NotUnderstood(`it refers to ${JSON.stringify(name)}`);
  return new Global(known);
}

/** What a call of one of the known functions returns. No Python code runs. @throws NotUnderstood */
export function callGlobal(callable: PickleValue, args: PickleValue): PickleValue {
  if (!(callable instanceof Global) || !(args instanceof Tuple))
    throw new NotUnderstood('a call of what is no function');
  const [first, second, third] = args.items;
  switch (callable.name) {
    case 'encode':
      if (first instanceof Text && second instanceof Text && /^(latin[-_]?1|iso-?8859-1)$/.test(second.toString()))
        return first.latin1();
      break;
    case 'dtype': {
      const code =
        first instanceof Text
          ? first.toString()
          : first instanceof Uint8Array
            ? Buffer.from(first.subarray(0, 8)).toString('latin1')
            : '';
      const bare = code.replace(/^\|/, '');
      if (bare === 'u1' || bare === 'b1') return new DataType(bare);
      throw new NotUnderstood(`an array of ${JSON.stringify(code)}; only of uint8 (u1) and bool (b1)`);
    }
    case 'reconstruct':
      if (first instanceof Global && first.name === 'ndarray') return new ByteArray();
      break;
    case 'frombuffer':
      return fill(new ByteArray(), third, second, first);
  }
  throw new NotUnderstood(`arguments that ${callable.name} does not have`);
}

/** BUILD: sets the state of an array or of a data type. The state of a data type of one byte has no information. */
export function setState(target: PickleValue | undefined, state: PickleValue): void {
  if (!(state instanceof Tuple)) throw new NotUnderstood('a state that NumPy does not write');
  if (target instanceof DataType) return;
  if (!(target instanceof ByteArray)) throw new NotUnderstood('a state for what is no array');
  const [shape, dtype, , data] = state.items.slice(-4);
  fill(target, shape, dtype, data);
}

/** An array of bytes; its shape is checked against its data. */
function fill(
  array: ByteArray,
  shape: PickleValue | undefined,
  dtype: PickleValue | undefined,
  data: PickleValue | undefined,
): ByteArray {
  if (!(shape instanceof Tuple) || !(dtype instanceof DataType) || !(data instanceof Uint8Array))
    throw new NotUnderstood('an array that NumPy does not write');
  const elements = shape.items.reduce<number>(
    (product, size) => product * (typeof size === 'number' && size >= 0 ? size : NaN),
    1,
  );
  if (elements !== data.length) throw new NotUnderstood(`an array of ${elements} elements with ${data.length} bytes`);
  array.dtype = dtype.code;
  array.data = data;
  return array;
}
