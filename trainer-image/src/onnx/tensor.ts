/// <reference lib="esnext.float16" />
/** TensorProto to Tensor and back. Data may be raw or typed; floats of 16 and 64 bits become float32. */
import { counted, FacetrainError } from '@facetrain/api';
import type { Tensor, TypedArray } from '@facetrain/native';
import {
  DATA_TYPES,
  type DataType,
  dataTypeNumber,
  isExternal,
  type TensorProto,
  toBigInt,
  toNumber,
} from './proto.ts';

/**
 * How each element type becomes an array of a Graph. Raw data is little-endian, as are all machines that Node supports.
 */
interface ElementType {
  bytes: number;
  /** @param raw starts at a multiple of `bytes` in its buffer */
  fromRaw(raw: Uint8Array, count: number): TypedArray;
  fromTyped(tensor: TensorProto): TypedArray;
}

const bfloat16 = (bits: Uint16Array) => new Float32Array(Uint32Array.from(bits, (value) => value << 16).buffer);

const ELEMENT_TYPES: Partial<Record<DataType, ElementType>> = {
  FLOAT: {
    bytes: 4,
    fromRaw: (raw, count) => new Float32Array(raw.buffer, raw.byteOffset, count),
    fromTyped: ({ floatData = [] }) => Float32Array.from(floatData),
  },
  DOUBLE: {
    bytes: 8,
    fromRaw: (raw, count) => Float32Array.from(new Float64Array(raw.buffer, raw.byteOffset, count)),
    fromTyped: ({ doubleData = [] }) => Float32Array.from(doubleData),
  },
  FLOAT16: {
    bytes: 2,
    fromRaw: (raw, count) => Float32Array.from(new Float16Array(raw.buffer, raw.byteOffset, count)),
    fromTyped: ({ int32Data = [] }) => Float32Array.from(new Float16Array(Uint16Array.from(int32Data).buffer)),
  },
  BFLOAT16: {
    bytes: 2,
    fromRaw: (raw, count) => bfloat16(new Uint16Array(raw.buffer, raw.byteOffset, count)),
    fromTyped: ({ int32Data = [] }) => bfloat16(Uint16Array.from(int32Data)),
  },
  // A graph has no booleans: 0 and 1.
  BOOL: {
    bytes: 1,
    fromRaw: (raw) => Int32Array.from(raw, (value) => Number(value !== 0)),
    fromTyped: ({ int32Data = [] }) => Int32Array.from(int32Data, (value) => Number(value !== 0)),
  },
  INT8: {
    bytes: 1,
    fromRaw: (raw, count) => new Int8Array(raw.buffer, raw.byteOffset, count),
    fromTyped: ({ int32Data = [] }) => Int8Array.from(int32Data),
  },
  UINT8: {
    bytes: 1,
    fromRaw: (raw, count) => new Uint8Array(raw.buffer, raw.byteOffset, count),
    fromTyped: ({ int32Data = [] }) => Uint8Array.from(int32Data),
  },
  INT32: {
    bytes: 4,
    fromRaw: (raw, count) => new Int32Array(raw.buffer, raw.byteOffset, count),
    fromTyped: ({ int32Data = [] }) => Int32Array.from(int32Data),
  },
  INT64: {
    bytes: 8,
    fromRaw: (raw, count) => new BigInt64Array(raw.buffer, raw.byteOffset, count),
    fromTyped: ({ int64Data = [] }) => BigInt64Array.from(int64Data, toBigInt),
  },
};

/** The element types that decodeTensor reads, for messages. */
export const NUMERIC_TYPES = `one of ${Object.keys(ELEMENT_TYPES).join(', ')}`;

/** Whether a constant is of another type of ONNX. */
export function isOfOtherType(constant: TensorProto | Tensor): boolean {
  const type = 'dataType' in constant ? DATA_TYPES[constant.dataType] : undefined;
  return type !== undefined && ELEMENT_TYPES[type] === undefined;
}

/** As many as libtorch's tensors have. */
const MOST_DIMS = 64;

/**
 * Decodes a constant. Raw float32 and integer data that is aligned in the file becomes a view of the file.
 * @throws FacetrainError InvalidModel for an unsupported element type or storage, or data that does not fit the dims
 */
export function decodeTensor(tensor: TensorProto, name: string, subject: string): Tensor {
  const invalid = (found: string, allowed: string) =>
    new FacetrainError({ code: 'InvalidModel', subject, found: `tensor "${name}" ${found}`, allowed });
  // readOnnx has loaded what is in other files; parseOnnx has bytes alone.
  if (isExternal(tensor)) {
    const file = tensor.externalData?.find(({ key }) => key === 'location')?.value;
    throw invalid(
      `keeps its data in another file${file ? ` (${file})` : ''}`,
      'save the model as one file with its weights inside (onnx.save_model without save_as_external_data)',
    );
  }
  const type = DATA_TYPES[tensor.dataType];
  const element = type && ELEMENT_TYPES[type];
  if (!element) throw invalid(`has element type ${type ?? tensor.dataType}`, NUMERIC_TYPES);

  const dims = tensor.dims.map(toNumber);
  const count = dims.reduce((product, dim) => product * dim, 1);
  if (dims.length > MOST_DIMS) throw invalid(`has ${dims.length} dims`, `${MOST_DIMS} at most`);
  if (!dims.every((dim) => Number.isSafeInteger(dim) && dim >= 0) || !Number.isSafeInteger(count))
    throw invalid(`has dims [${dims.join(', ')}]`, 'sizes of zero or more');
  const expected = `${counted(count, 'element')} of ${type} for dims [${dims.join(', ')}]`;
  if (tensor.rawData?.length) {
    if (tensor.rawData.length !== count * element.bytes)
      throw invalid(`holds ${tensor.rawData.length} bytes`, `${expected} are ${count * element.bytes}`);
    const aligned = tensor.rawData.byteOffset % element.bytes === 0 ? tensor.rawData : new Uint8Array(tensor.rawData);
    return { dims, data: element.fromRaw(aligned, count) };
  }
  const data = element.fromTyped(tensor);
  if (data.length !== count) throw invalid(`holds ${counted(data.length, 'element')}`, expected);
  return { dims, data };
}

/** The element type of an array in a Graph. */
export function elementType(data: TypedArray): DataType {
  if (data instanceof Float32Array) return 'FLOAT';
  if (data instanceof BigInt64Array) return 'INT64';
  if (data instanceof Int32Array) return 'INT32';
  return data instanceof Int8Array ? 'INT8' : 'UINT8';
}

/** The raw data of the result is a view of the tensor's data. */
export function encodeTensor(name: string, { dims, data }: Tensor): TensorProto {
  return {
    name,
    dims,
    dataType: dataTypeNumber(elementType(data)),
    rawData: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
  };
}
