/** The values that pickle.ts reads, and the decoding of Python's forms of text. */

/** A file that is not understood. The message follows the words "byte 17: ". */
export class NotUnderstood extends Error {}

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

/** A NumPy data type: b booleans, i and u integers, f floats, S byte strings, O any objects. */
export class DataType {
  /** Without the byte order: "u1", "f8", "S1024". */
  readonly code: string;
  readonly kind: 'b' | 'i' | 'u' | 'f' | 'S' | 'O';
  /** Bytes of an element; 0 for objects. */
  readonly itemSize: number;
  bigEndian: boolean;

  /** @throws NotUnderstood for any other type */
  constructor(name: string) {
    const match = /^([<>|=]?)(b1|[iu][1248]|f[248]|S\d{1,9}|O)$/.exec(name === 'O8' ? 'O' : name);
    if (!match)
      throw new NotUnderstood(`an array of ${JSON.stringify(name)}; only of bools, numbers, byte strings and objects`);
    this.code = match[2]!;
    this.kind = this.code[0] as DataType['kind'];
    this.itemSize = this.kind === 'O' ? 0 : Number(this.code.slice(1));
    this.bigEndian = match[1] === '>';
  }

  /** Whether an element is true in Python: not zero. */
  isTrue(element: Uint8Array): boolean {
    const sign = this.bigEndian ? 0 : element.length - 1; // -0.0 is zero
    return element.some((byte, i) => (this.kind === 'f' && i === sign ? byte & 0x7f : byte) !== 0);
  }
}

/** A NumPy array, without its shape. */
export class NumpyArray {
  dtype: DataType = new DataType('u1');
  /** Empty for objects. */
  data: Uint8Array = new Uint8Array(0);
  objects: readonly PickleValue[] = [];

  get length(): number {
    const { kind, itemSize } = this.dtype;
    if (kind === 'O') return this.objects.length;
    return itemSize === 0 ? 0 : this.data.length / itemSize;
  }

  /** Its elements: byte strings, bools (for numbers: whether they are not zero), or objects. */
  elements(): readonly PickleValue[] {
    const { kind, itemSize } = this.dtype;
    if (kind === 'O') return this.objects;
    return Array.from({ length: this.length }, (_, i) => {
      const element = this.data.subarray(i * itemSize, (i + 1) * itemSize);
      return kind === 'S' ? withoutTrailingZeros(element) : this.dtype.isTrue(element);
    });
  }
}

/** NumPy fills byte strings with zeros up to the longest. */
export function withoutTrailingZeros(bytes: Uint8Array): Uint8Array {
  let end = bytes.length;
  while (end > 0 && bytes[end - 1] === 0) end -= 1;
  return bytes.subarray(0, end);
}

export type PickleValue =
  | null
  | boolean
  | number
  | Uint8Array
  | Text
  | Global
  | DataType
  | NumpyArray
  | Tuple
  | PickleValue[];

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
