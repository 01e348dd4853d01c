/**
 * Encodes verification sets in insightface's layout: a pickle of (pictures, issame), as verification-set.ts reads it.
 */

/** Opcodes of Python's pickle, protocol 3 (Lib/pickletools.py), the first that has bytes. */
const OP = {
  protocol: Uint8Array.of(0x80, 3),
  emptyList: Uint8Array.of(0x5d),
  mark: Uint8Array.of(0x28),
  appends: Uint8Array.of(0x65),
  true: Uint8Array.of(0x88),
  false: Uint8Array.of(0x89),
  tuple2: Uint8Array.of(0x86),
  stop: Uint8Array.of(0x2e),
};

function binBytes(bytes: Uint8Array): Uint8Array[] {
  const head = Buffer.alloc(5);
  head.writeUInt8(0x42, 0);
  head.writeUInt32LE(bytes.length, 1);
  return [head, bytes];
}

/**
 * @param pictures encoded; 2i and 2i + 1 are pair i
 * @param same by pair
 */
export function pickleVerificationSet(pictures: readonly Uint8Array[], same: readonly boolean[]): Uint8Array {
  const list = (items: Uint8Array[]) => [OP.emptyList, OP.mark, ...items, OP.appends];
  return Buffer.concat([
    OP.protocol,
    ...list(pictures.flatMap(binBytes)),
    ...list(same.map((value) => (value ? OP.true : OP.false))),
    OP.tuple2,
    OP.stop,
  ]);
}
