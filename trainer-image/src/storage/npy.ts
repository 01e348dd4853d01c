/** NumPy's file format, version 1.0 (NEP 1). Pure. */

/** A .npy file of float32 or int64 in row-major order: [rows, columns], or [n] without `columns`. */
export function npyFile(values: Float32Array | BigInt64Array, columns?: number): Uint8Array {
  const type = values instanceof Float32Array ? '<f4' : '<i8';
  const shape = columns === undefined ? `(${values.length},)` : `(${values.length / columns}, ${columns})`;
  const header = `{'descr': '${type}', 'fortran_order': False, 'shape': ${shape}, }`;
  // Magic, version, the header's length in two bytes; the numbers begin at a multiple of 64.
  const before = 10;
  const length = Math.ceil((before + header.length + 1) / 64) * 64 - before;
  const start = Buffer.alloc(before + length);
  start.write('\x93NUMPY\x01\x00', 'latin1');
  start.writeUInt16LE(length, 8);
  start.write(`${header.padEnd(length - 1)}\n`, before, 'latin1');
  return Buffer.concat([start, Buffer.from(values.buffer, values.byteOffset, values.byteLength)]);
}
