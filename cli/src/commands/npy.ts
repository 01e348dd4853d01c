/** NumPy's file format, version 1.0 (NEP 1). */

/** A .npy file of float32 [rows, columns], in row-major order. */
export function npyFile(values: Float32Array, columns: number): Uint8Array {
  const shape = `(${values.length / columns}, ${columns})`;
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': ${shape}, }`;
  // Magic, version, the header's length in two bytes; the numbers begin at a multiple of 64.
  const before = 10;
  const length = Math.ceil((before + header.length + 1) / 64) * 64 - before;
  const file = Buffer.alloc(before + length + 4 * values.length);
  file.write('\x93NUMPY\x01\x00', 'latin1');
  file.writeUInt16LE(length, 8);
  file.write(`${header.padEnd(length - 1)}\n`, before, 'latin1');
  values.forEach((value, i) => file.writeFloatLE(value, before + length + 4 * i));
  return file;
}
