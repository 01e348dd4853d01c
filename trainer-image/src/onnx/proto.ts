/**
 * The part of onnx.proto that a face model uses, as a protobufjs schema with its codec. It does not
 * interpret the graph.
 *
 * Field numbers are onnx.proto's. Fields that are not listed are skipped when read. Nested graphs stay bytes until
 * decodeGraph reads one, so no file can make the decoder recurse. `rawData` is a view of the file's bytes, not a copy.
 *
 * Nodes, attributes, constants and the types of values have all their fields, some as bytes that nothing here reads: a
 * node that is decoded and encoded again is the same node (tail.ts).
 */
import protobuf from 'protobufjs';

/** A 64-bit integer as protobufjs decodes it, or a number to be encoded. */
export type Int64 = number | { low: number; high: number; toNumber(): number };

export interface TensorProto {
  dims: Int64[];
  dataType: number;
  floatData?: number[];
  int32Data?: number[];
  int64Data?: Int64[];
  doubleData?: number[];
  uint64Data?: Int64[];
  name: string;
  rawData?: Uint8Array;
  externalData?: { key: string; value: string }[];
  dataLocation?: number;
}

export interface AttributeProto {
  name: string;
  type: number;
  f?: number;
  i?: Int64;
  s?: Uint8Array;
  t?: TensorProto | null;
  /** A GraphProto. */
  g?: Uint8Array;
  /** GraphProtos. */
  graphs?: Uint8Array[];
  floats?: number[];
  ints?: Int64[];
}

export interface NodeProto {
  input: string[];
  output: string[];
  name: string;
  opType: string;
  attribute: AttributeProto[];
  domain?: string;
}

export interface ValueInfoProto {
  name: string;
  type?: {
    tensorType?: { elemType: number; shape?: { dim: { dimValue?: Int64; dimParam?: string }[] } | null } | null;
  } | null;
}

export interface GraphProto {
  node: NodeProto[];
  name: string;
  initializer: TensorProto[];
  input: ValueInfoProto[];
  output: ValueInfoProto[];
  sparseInitializer?: unknown[];
}

export interface ModelProto {
  irVersion: Int64;
  producerName: string;
  producerVersion: string;
  docString?: string;
  graph?: GraphProto | null;
  opsetImport: { domain: string; version: Int64 }[];
  metadataProps: { key: string; value: string }[];
  functions?: unknown[];
}

/** AttributeProto.AttributeType. */
export const AttributeType = {
  FLOAT: 1,
  INT: 2,
  STRING: 3,
  TENSOR: 4,
  GRAPH: 5,
  FLOATS: 6,
  INTS: 7,
  STRINGS: 8,
  TENSORS: 9,
  GRAPHS: 10,
} as const;

/** TensorProto.DataType, by number. */
export const DATA_TYPES = [
  'UNDEFINED',
  'FLOAT',
  'UINT8',
  'INT8',
  'UINT16',
  'INT16',
  'INT32',
  'INT64',
  'STRING',
  'BOOL',
  'FLOAT16',
  'DOUBLE',
  'UINT32',
  'UINT64',
  'COMPLEX64',
  'COMPLEX128',
  'BFLOAT16',
  'FLOAT8E4M3FN',
  'FLOAT8E4M3FNUZ',
  'FLOAT8E5M2',
  'FLOAT8E5M2FNUZ',
  'UINT4',
  'INT4',
  'FLOAT4E2M1',
  'FLOAT8E8M0',
  'UINT2',
  'INT2',
] as const;
export type DataType = (typeof DATA_TYPES)[number];

export function dataTypeNumber(type: DataType): number {
  return DATA_TYPES.indexOf(type);
}

/** TensorProto.DataLocation.EXTERNAL. */
const EXTERNAL = 1;

/** Whether a tensor's data is in another file. */
export function isExternal({ dataLocation, externalData }: TensorProto): boolean {
  return dataLocation === EXTERNAL || (externalData?.length ?? 0) > 0;
}

const one = (type: string, id: number) => ({ type, id });
const many = (type: string, id: number, packed = false) => ({
  rule: 'repeated' as const,
  type,
  id,
  options: { packed },
});
const message = (fields: Record<string, protobuf.IField>) => ({ fields });

const Root = protobuf.Root.fromJSON({
  nested: {
    StringStringEntryProto: message({ key: one('string', 1), value: one('string', 2) }),
    OperatorSetIdProto: message({ domain: one('string', 1), version: one('int64', 2) }),
    TensorProto: message({
      dims: many('int64', 1),
      dataType: one('int32', 2),
      floatData: many('float', 4, true),
      int32Data: many('int32', 5, true),
      int64Data: many('int64', 7, true),
      name: one('string', 8),
      rawData: one('bytes', 9),
      doubleData: many('double', 10, true),
      uint64Data: many('uint64', 11, true),
      externalData: many('StringStringEntryProto', 13),
      dataLocation: one('int32', 14),
      segment: one('bytes', 3),
      stringData: many('bytes', 6),
      docString: one('string', 12),
      metadataProps: many('bytes', 16),
    }),
    AttributeProto: message({
      name: one('string', 1),
      f: one('float', 2),
      i: one('int64', 3),
      s: one('bytes', 4),
      t: one('TensorProto', 5),
      g: one('bytes', 6),
      floats: many('float', 7),
      ints: many('int64', 8),
      type: one('int32', 20),
      strings: many('bytes', 9),
      tensors: many('bytes', 10),
      graphs: many('bytes', 11),
      docString: one('string', 13),
      typeProto: one('bytes', 14),
      typeProtos: many('bytes', 15),
      refAttrName: one('string', 21),
      sparseTensor: one('bytes', 22),
      sparseTensors: many('bytes', 23),
    }),
    NodeProto: message({
      input: many('string', 1),
      output: many('string', 2),
      name: one('string', 3),
      opType: one('string', 4),
      attribute: many('AttributeProto', 5),
      docString: one('string', 6),
      domain: one('string', 7),
      overload: one('string', 8),
      metadataProps: many('bytes', 9),
    }),
    Dimension: message({ dimValue: one('int64', 1), dimParam: one('string', 2), denotation: one('string', 3) }),
    TensorShapeProto: message({ dim: many('Dimension', 1) }),
    TensorType: message({ elemType: one('int32', 1), shape: one('TensorShapeProto', 2) }),
    TypeProto: message({
      tensorType: one('TensorType', 1),
      sequenceType: one('bytes', 4),
      mapType: one('bytes', 5),
      denotation: one('string', 6),
      sparseTensorType: one('bytes', 8),
      optionalType: one('bytes', 9),
    }),
    ValueInfoProto: message({
      name: one('string', 1),
      type: one('TypeProto', 2),
      docString: one('string', 3),
      metadataProps: many('bytes', 4),
    }),
    GraphProto: message({
      node: many('NodeProto', 1),
      name: one('string', 2),
      initializer: many('TensorProto', 5),
      input: many('ValueInfoProto', 11),
      output: many('ValueInfoProto', 12),
      sparseInitializer: many('bytes', 15),
      docString: one('string', 10),
      valueInfo: many('bytes', 13),
      quantizationAnnotation: many('bytes', 14),
      metadataProps: many('bytes', 16),
    }),
    ModelProto: message({
      irVersion: one('int64', 1),
      producerName: one('string', 2),
      producerVersion: one('string', 3),
      docString: one('string', 6),
      graph: one('GraphProto', 7),
      opsetImport: many('OperatorSetIdProto', 8),
      metadataProps: many('StringStringEntryProto', 14),
      functions: many('bytes', 25),
    }),
  },
});
const Model = Root.lookupType('ModelProto');
const NestedGraph = Root.lookupType('GraphProto');

/** @throws Error of protobufjs when the bytes are no message of this type. */
export function decodeModel(bytes: Uint8Array): ModelProto {
  return Model.decode(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)) as unknown as ModelProto;
}

/** The graph of an attribute. @throws Error of protobufjs when the bytes are no message of this type. */
export function decodeGraph(bytes: Uint8Array): GraphProto {
  return NestedGraph.decode(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)) as unknown as GraphProto;
}

/** A graph for an attribute. */
export function encodeGraph(graph: GraphProto): Uint8Array {
  return Uint8Array.from(NestedGraph.encode(graph as never).finish());
}

export function encodeModel(model: ModelProto): Uint8Array {
  // Not returned as a Buffer, whose slice() is a view; a Uint8Array's slice() is a copy.
  const { buffer, byteOffset, byteLength } = Model.encode(model as never).finish();
  return new Uint8Array(buffer, byteOffset, byteLength);
}

/** The value as a number: exact within +-2^53, nearest otherwise. */
export function toNumber(value: Int64): number {
  return typeof value === 'number' ? value : value.toNumber();
}

export function toBigInt(value: Int64): bigint {
  return typeof value === 'number' ? BigInt(value) : (BigInt(value.high) << 32n) | BigInt(value.low >>> 0);
}
