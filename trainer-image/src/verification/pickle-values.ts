/** The values that pickle.ts reads, and the decoding of Python's forms of text. */

export class Tuple {
  readonly items: readonly PickleValue[];
  constructor(items: readonly PickleValue[]) {
    this.items = items;
  }
}

/** Text, kept as bytes: for old protocols, Python 3 writes `bytes` as text and a call of `_codecs.encode`. */
export class Text {
  readonly #bytes: Uint8Array;
  /** Computed once: a file may refer to one long text a million times. */
  #latin1: Uint8Array | undefined;

  constructor(bytes: Uint8Array, encoding: 'utf8' | 'latin1') {
    this.#bytes = bytes;
    if (encoding === 'latin1') this.#latin1 = bytes;
  }

  /** @throws NotUnderstood when a character is beyond Latin-1 */
  latin1(): Uint8Array {
    this.#latin1 ??= fromUtf8(this.#bytes);
    return this.#latin1;
  }

  /** The first 200 bytes: names are shorter. */
  toString(): string {
    return Buffer.from(this.#bytes.subarray(0, 200)).toString('utf8');
  }
}

/** A Python name that the file refers to. It is compared with known names, and never looked up. */
export class Global {
  readonly name: string;
  constructor(name: string) {
    this.name = name;
  }
}

/** A NumPy data type: unsigned bytes or booleans. */
export class DataType {
  readonly code: 'u1' | 'b1';
  constructor(code: 'u1' | 'b1') {
    this.code = code;
  }
}

/** A NumPy array of single bytes, without its shape. */
export class ByteArray {
  dtype: 'u1' | 'b1' = 'u1';
  data: Uint8Array = new Uint8Array(0);
}

export type PickleValue =
  | null
  | boolean
  | number
  | Uint8Array
  | Text
  | Global
  | DataType
  | ByteArray
  | Tuple
  | PickleValue[];

/** A file that is not understood. The message follows the words "byte 17: ". */
export class NotUnderstood extends Error {}

/** UTF-8 to Latin-1. @throws NotUnderstood when a character is beyond Latin-1 */
function fromUtf8(bytes: Uint8Array): Uint8Array {
  const latin1 = new Uint8Array(bytes.length);
  let length = 0;
  for (let i = 0; i < bytes.length; i++) {
    let value = bytes[i]!;
    if (value >= 0x80) {
      const next = bytes[++i];
      if ((value !== 0xc2 && value !== 0xc3) || next === undefined || next >> 6 !== 2)
        throw new NotUnderstood('text that stands for bytes has a character beyond Latin-1');
      value = ((value & 3) << 6) | (next & 0x3f);
    }
    latin1[length++] = value;
  }
  return latin1.subarray(0, length);
}

const SIMPLE_ESCAPES: Record<string, number> = { '\\': 0x5c, "'": 0x27, '"': 0x22, n: 0x0a, r: 0x0d, t: 0x09 };

/** Resolves escapes: \xHH and the simple ones in a Python 2 string, \uHHHH in raw-unicode-escape. */
export function unescaped(bytes: Uint8Array, kind: 'string' | 'unicode'): Uint8Array {
  const out = new Uint8Array(bytes.length);
  let length = 0;
  for (let i = 0; i < bytes.length; i++) {
    if (bytes[i] !== 0x5c) {
      out[length++] = bytes[i]!;
      continue;
    }
    const letter = String.fromCharCode(bytes[i + 1] ?? 0);
    const digits = kind === 'string' ? (letter === 'x' ? 2 : 0) : letter === 'u' ? 4 : 0;
    if (digits > 0) {
      const hex = Buffer.from(bytes.subarray(i + 2, i + 2 + digits)).toString('latin1');
      const value = /^[0-9a-fA-F]+$/.test(hex) && hex.length === digits ? parseInt(hex, 16) : 256;
      if (value > 255) throw new NotUnderstood('text that stands for bytes has an escape beyond Latin-1');
      out[length++] = value;
      i += 1 + digits;
    } else if (kind === 'string' && letter in SIMPLE_ESCAPES) {
      out[length++] = SIMPLE_ESCAPES[letter]!;
      i += 1;
    } else if (kind === 'unicode') {
      out[length++] = 0x5c;
    } else {
      throw new NotUnderstood('a string has an escape that Python does not write');
    }
  }
  return out.subarray(0, length);
}
