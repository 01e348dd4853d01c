/**
 * The Python functions and classes that verification sets refer to, done here without Python: `_codecs.encode` and
 * `bytearray`, NumPy's arrays and scalars. NumPy's state: numpy/core/src/multiarray/methods.c (array_reduce,
 * array_reduce_ex).
 */
import { counted } from '@facetrain/api';
import {
  DataType,
  Global,
  NotUnderstood,
  NumpyArray,
  type PickleValue,
  Text,
  Tuple,
  withoutTrailingZeros,
} from './pickle-values.ts';

/** The Python names that a set may refer to, with our names of them. All others are refused. */
const KNOWN_NAMES = new Map<string, string>([
  ['_codecs.encode', 'encode'],
  ['numpy.ndarray', 'ndarray'],
  ['numpy.dtype', 'dtype'],
  ...['numpy.core', 'numpy._core'].flatMap((core): [string, string][] => [
    [`${core}.multiarray._reconstruct`, 'reconstruct'],
    [`${core}.multiarray.scalar`, 'scalar'],
    [`${core}.numeric._frombuffer`, 'frombuffer'],
  ]),
  // Python 2's name of the module is in protocols 0 to 2.
  ['builtins.bytearray', 'bytearray'],
  ['__builtin__.bytearray', 'bytearray'],
]);

/** @throws NotUnderstood for any name but the known ones */
export function knownGlobal(name: string): Global {
  const known = KNOWN_NAMES.get(name);
  if (known === undefined) throw new NotUnderstood(`it refers to ${JSON.stringify(name)}`);
  return new Global(known);
}

const isLatin1 = (encoding: PickleValue | undefined): boolean =>
  encoding instanceof Text && /^(latin[-_]?1|iso-?8859-1)$/.test(encoding.toString());

/** What a call of one of the known functions returns. No Python code runs. @throws NotUnderstood */
export function callGlobal(callable: PickleValue, args: PickleValue): PickleValue {
  if (!(callable instanceof Global) || !(args instanceof Tuple))
    throw new NotUnderstood('a call of what is no function');
  const [first, second, third] = args.items;
  switch (callable.name) {
    case 'encode':
      if (first instanceof Text && isLatin1(second)) return first.latin1();
      break;
    case 'bytearray': // bytearray(bytes), bytearray(text, 'latin-1'), and both without arguments
      if (first === undefined) return new Uint8Array(0);
      if (first instanceof Uint8Array && second === undefined) return first;
      if (first instanceof Text && isLatin1(second)) return first.latin1();
      break;
    case 'scalar':
      if (first instanceof DataType && second instanceof Uint8Array && second.length === first.itemSize)
        return first.kind === 'S' ? withoutTrailingZeros(second) : first.isTrue(second);
      break;
    case 'dtype': {
      const code =
        first instanceof Text
          ? first.toString()
          : first instanceof Uint8Array
            ? Buffer.from(first.subarray(0, 8)).toString('latin1')
            : '';
      return new DataType(code);
    }
    case 'reconstruct':
      if (first instanceof Global && first.name === 'ndarray') return new NumpyArray();
      break;
    case 'frombuffer':
      return fill(new NumpyArray(), third, second, first);
  }
  throw new NotUnderstood(`arguments that ${callable.name} does not have`);
}

/** BUILD: sets the state of an array or of a data type, of which only the byte order matters. */
export function setState(target: PickleValue | undefined, state: PickleValue): void {
  if (!(state instanceof Tuple)) throw new NotUnderstood('a state that NumPy does not write');
  if (target instanceof DataType) {
    const order = state.items[1];
    const text =
      order instanceof Text
        ? order.toString()
        : order instanceof Uint8Array
          ? String.fromCharCode(...order.subarray(0, 1))
          : '';
    if (text !== '') target.bigEndian = text === '>';
    return;
  }
  if (!(target instanceof NumpyArray)) throw new NotUnderstood('a state for what is no array');
  const [shape, dtype, , data] = state.items.slice(-4);
  fill(target, shape, dtype, data);
}

/** An array; its shape is checked against its data. */
function fill(
  array: NumpyArray,
  shape: PickleValue | undefined,
  dtype: PickleValue | undefined,
  data: PickleValue | undefined,
): NumpyArray {
  if (!(shape instanceof Tuple) || !(dtype instanceof DataType))
    throw new NotUnderstood('an array that NumPy does not write');
  const elements = shape.items.reduce<number>(
    (product, size) => product * (typeof size === 'number' && size >= 0 ? size : NaN),
    1,
  );
  array.dtype = dtype;
  if (dtype.kind === 'O' && Array.isArray(data)) {
    if (elements !== data.length)
      throw new NotUnderstood(`an array of ${counted(elements, 'element')} with ${counted(data.length, 'object')}`);
    array.objects = data;
    return array;
  }
  if (!(data instanceof Uint8Array) || dtype.kind === 'O')
    throw new NotUnderstood('an array that NumPy does not write');
  if (elements * dtype.itemSize !== data.length)
    throw new NotUnderstood(`an array of ${counted(elements, 'element')} with ${data.length} bytes`);
  array.data = data;
  return array;
}
