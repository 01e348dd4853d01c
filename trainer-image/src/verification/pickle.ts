/**
 * A closed reader of Python pickles, protocols 0 to 5: lists, tuples, bytes, text, integers, bools and byte arrays of NumPy, which is
 * what insightface's verification sets are made of. A general unpickler calls whatever function a file names; this one knows the few
 * names below, calls none of them, and refuses a file with any other.
 *
 * Whatever the bytes are, it ends in time linear in their number, in a value or a FacetrainError. Byte strings are views of the input.
 * Opcodes: CPython's Lib/pickletools.py. NumPy's state: numpy/core/src/multiarray/methods.c (array_reduce, array_reduce_ex).
 */
import { FacetrainError } from '@facetrain/api';

export class Tuple {
  readonly items: readonly PickleValue[];
  constructor(items: readonly PickleValue[]) {
    this.items = items;
  }
}

/** Text, kept as bytes: Python 3 writes `bytes` for old protocols as text that `_codecs.encode` turns back. */
class Text {
  readonly #bytes: Uint8Array;
  /** Made once, however often a file asks for it: the memo could name one long text a million times. */
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

  /** For names, which are short. */
  toString(): string {
    return Buffer.from(this.#bytes.subarray(0, 200)).toString('utf8');
  }
}

/** A name that the file refers to: never looked up, only compared. */
class Global {
  readonly name: string;
  constructor(name: string) {
    this.name = name;
  }
}

class DataType {
  readonly code: 'u1' | 'b1';
  constructor(code: 'u1' | 'b1') {
    this.code = code;
  }
}

/** A NumPy array of single bytes; its shape is checked against its data and dropped. */
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

/** What is wrong, in words that follow "byte 17: ". */
class NotUnderstood extends Error {}

const knownGlobals = new Map<string, string>([
  ['_codecs.encode', 'encode'],
  ['numpy.ndarray', 'ndarray'],
  ['numpy.dtype', 'dtype'],
  ...['numpy.core', 'numpy._core'].flatMap((core): [string, string][] => [
    [`${core}.multiarray._reconstruct`, 'reconstruct'],
    [`${core}.numeric._frombuffer`, 'frombuffer'],
  ]),
]);

/** Bounds time and what a file can make us allocate beyond its own size. A picture takes up to thirty steps, and the usual sets have some ten thousand. */
const maxSteps = 1 << 22;

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

const simpleEscapes: Record<string, number> = { '\\': 0x5c, "'": 0x27, '"': 0x22, n: 0x0a, r: 0x0d, t: 0x09 };

/** Bytes with escapes: \xHH and the simple ones of a Python 2 string, or the \uHHHH of raw-unicode-escape. */
function unescaped(bytes: Uint8Array, kind: 'string' | 'unicode'): Uint8Array {
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
    } else if (kind === 'string' && letter in simpleEscapes) {
      out[length++] = simpleEscapes[letter]!;
      i += 1;
    } else if (kind === 'unicode') {
      out[length++] = 0x5c;
    } else {
      throw new NotUnderstood('a string has an escape that Python does not write');
    }
  }
  return out.subarray(0, length);
}

class Reader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  position = 0;
  readonly #stack: PickleValue[] = [];
  /** Heights of the stack at each MARK. */
  readonly #marks: number[] = [];
  readonly #memo = new Map<number, PickleValue>();

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  #take(length: number): Uint8Array {
    if (length < 0) throw new NotUnderstood(`a length of ${length}`);
    const left = this.#bytes.length - this.position;
    if (length > left) throw new NotUnderstood(`the file ends: ${length} bytes are announced, ${left} are left`);
    this.position += length;
    return this.#bytes.subarray(this.position - length, this.position);
  }

  #unsigned(size: 1 | 2 | 4 | 8): number {
    const at = this.position;
    this.#take(size);
    if (size === 1) return this.#view.getUint8(at);
    if (size === 2) return this.#view.getUint16(at, true);
    if (size === 4) return this.#view.getUint32(at, true);
    return Number(this.#view.getBigUint64(at, true));
  }

  #int32(): number {
    return this.#unsigned(4) | 0;
  }

  /** A two's complement integer of up to eight bytes. */
  #long(length: number): number {
    if (length > 8) throw new NotUnderstood(`an integer of ${length} bytes`);
    const bytes = this.#take(length);
    let value = 0n;
    for (let i = length - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[i]!);
    return Number(BigInt.asIntN(8 * length, value));
  }

  /** Up to the end of the line, without it. */
  #line(): Uint8Array {
    const end = this.#bytes.indexOf(0x0a, this.position);
    if (end < 0) throw new NotUnderstood('the file ends inside a line');
    const line = this.#take(end - this.position);
    this.position += 1;
    return line;
  }

  #shortLine(): string {
    const line = this.#line();
    if (line.length > 200)
      throw new NotUnderstood('a line of more than 200 characters where a name or a number belongs');
    return Buffer.from(line).toString('utf8');
  }

  #decimal(text: string): number {
    if (!/^-?\d{1,15}$/.test(text)) throw new NotUnderstood(`${JSON.stringify(text)} is no integer`);
    return Number(text);
  }

  #push(value: PickleValue): void {
    this.#stack.push(value);
  }

  #pop(): PickleValue {
    if (this.#stack.length <= (this.#marks.at(-1) ?? 0)) throw new NotUnderstood('a value is missing');
    return this.#stack.pop()!;
  }

  #popToMark(): PickleValue[] {
    const mark = this.#marks.pop();
    if (mark === undefined) throw new NotUnderstood('a mark is missing');
    return this.#stack.splice(mark);
  }

  #popTuple(size: number): void {
    const items: PickleValue[] = [];
    for (let i = 0; i < size; i++) items.unshift(this.#pop());
    this.#push(new Tuple(items));
  }

  #append(items: PickleValue[]): void {
    const list = this.#stack.at(-1);
    if (!Array.isArray(list) || this.#stack.length <= (this.#marks.at(-1) ?? 0))
      throw new NotUnderstood('something is appended to what is no list');
    for (const item of items) list.push(item);
  }

  #remember(key: number): void {
    const value = this.#pop();
    this.#push(value);
    this.#memo.set(key, value);
  }

  #recall(key: number): void {
    const value = this.#memo.get(key);
    if (value === undefined) throw new NotUnderstood(`value ${key} was never remembered`);
    this.#push(value);
  }

  #global(name: string): void {
    const known = knownGlobals.get(name);
    if (known === undefined) throw new NotUnderstood(`it refers to ${JSON.stringify(name)}`);
    this.#push(new Global(known));
  }

  #call(callable: PickleValue, args: PickleValue): PickleValue {
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
        return this.#filled(new ByteArray(), third, second, first);
    }
    throw new NotUnderstood(`arguments that ${callable.name} does not have`);
  }

  #filled(
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

  /** BUILD: the state of an array or of a data type; that of a data type of one byte says nothing new. */
  #setState(): void {
    const state = this.#pop();
    const target = this.#stack.at(-1);
    if (!(state instanceof Tuple)) throw new NotUnderstood('a state that NumPy does not write');
    if (target instanceof DataType) return;
    if (!(target instanceof ByteArray)) throw new NotUnderstood('a state for what is no array');
    const [shape, dtype, , data] = state.items.slice(-4);
    this.#filled(target, shape, dtype, data);
  }

  /** Runs to STOP. */
  read(): PickleValue {
    for (let step = 0; step < maxSteps; step++) {
      const opcode = this.#unsigned(1);
      switch (opcode < 0x80 ? String.fromCharCode(opcode) : opcode) {
        case 0x80: {
          const protocol = this.#unsigned(1);
          if (protocol > 5) throw new NotUnderstood(`protocol ${protocol}; known are 0 to 5`);
          break;
        }
        case 0x95: // FRAME: a hint for readers of streams
          this.#take(8);
          break;
        case '.':
          return this.#pop();

        case 'N':
          this.#push(null);
          break;
        case 0x88:
          this.#push(true);
          break;
        case 0x89:
          this.#push(false);
          break;
        case 'I': {
          const text = this.#shortLine();
          this.#push(text === '01' ? true : text === '00' ? false : this.#decimal(text));
          break;
        }
        case 'L':
          this.#push(this.#decimal(this.#shortLine().replace(/L$/, '')));
          break;
        case 'J':
          this.#push(this.#int32());
          break;
        case 'K':
          this.#push(this.#unsigned(1));
          break;
        case 'M':
          this.#push(this.#unsigned(2));
          break;
        case 0x8a:
          this.#push(this.#long(this.#unsigned(1)));
          break;
        case 0x8b:
          this.#push(this.#long(this.#unsigned(4)));
          break;

        case 'S': {
          const line = this.#line();
          const quote = line[0];
          if (line.length < 2 || (quote !== 0x27 && quote !== 0x22) || line.at(-1) !== quote)
            throw new NotUnderstood('a string without quotes');
          this.#push(unescaped(line.subarray(1, -1), 'string'));
          break;
        }
        case 'T':
          this.#push(this.#take(this.#int32()));
          break;
        case 'U':
        case 'C':
          this.#push(this.#take(this.#unsigned(1)));
          break;
        case 'B':
          this.#push(this.#take(this.#unsigned(4)));
          break;
        case 0x8e: // BINBYTES8
        case 0x96: // BYTEARRAY8
          this.#push(this.#take(this.#unsigned(8)));
          break;
        case 'V':
          this.#push(new Text(unescaped(this.#line(), 'unicode'), 'latin1'));
          break;
        case 0x8c:
          this.#push(new Text(this.#take(this.#unsigned(1)), 'utf8'));
          break;
        case 'X':
          this.#push(new Text(this.#take(this.#unsigned(4)), 'utf8'));
          break;
        case 0x8d:
          this.#push(new Text(this.#take(this.#unsigned(8)), 'utf8'));
          break;

        case '(':
          this.#marks.push(this.#stack.length);
          break;
        case ']':
          this.#push([]);
          break;
        case 'a':
          this.#append([this.#pop()]);
          break;
        case 'e':
          this.#append(this.#popToMark());
          break;
        case 'l':
          this.#push(this.#popToMark());
          break;
        case ')':
          this.#push(new Tuple([]));
          break;
        case 't':
          this.#push(new Tuple(this.#popToMark()));
          break;
        case 0x85:
        case 0x86:
        case 0x87:
          this.#popTuple(opcode - 0x84);
          break;

        case 'p':
          this.#remember(this.#decimal(this.#shortLine()));
          break;
        case 'q':
          this.#remember(this.#unsigned(1));
          break;
        case 'r':
          this.#remember(this.#unsigned(4));
          break;
        case 0x94: // MEMOIZE
          this.#remember(this.#memo.size);
          break;
        case 'g':
          this.#recall(this.#decimal(this.#shortLine()));
          break;
        case 'h':
          this.#recall(this.#unsigned(1));
          break;
        case 'j':
          this.#recall(this.#unsigned(4));
          break;

        case 'c':
          this.#global(`${this.#shortLine()}.${this.#shortLine()}`);
          break;
        case 0x93: {
          const name = this.#pop();
          const module = this.#pop();
          if (!(name instanceof Text) || !(module instanceof Text)) throw new NotUnderstood('a name that is no text');
          this.#global(`${module}.${name}`);
          break;
        }
        case 'R': {
          const args = this.#pop();
          this.#push(this.#call(this.#pop(), args));
          break;
        }
        case 'b':
          this.#setState();
          break;

        case 'i': // INST names what it calls; the other ways to make objects take it from the stack
          this.#global(`${this.#shortLine()}.${this.#shortLine()}`);
          throw new NotUnderstood('it makes an object');
        default:
          throw new NotUnderstood(
            `opcode 0x${opcode.toString(16).padStart(2, '0')}, which no list of byte strings or bools needs`,
          );
      }
    }
    throw new NotUnderstood(`more than ${maxSteps} steps`);
  }
}

/**
 * Reads a pickle.
 * @param subject the file, for the message
 * @throws FacetrainError InvalidVerificationSet
 */
export function unpickle(bytes: Uint8Array, subject: string): PickleValue {
  const reader = new Reader(bytes);
  try {
    return reader.read();
  } catch (error) {
    if (!(error instanceof NotUnderstood)) throw error;
    throw new FacetrainError({
      code: 'InvalidVerificationSet',
      subject,
      found: `byte ${reader.position}: ${error.message}`,
      allowed:
        'a pickle of nothing but lists of byte strings (or uint8 arrays) and bools is read; other Python objects are refused, never run',
    });
  }
}
