/**
 * A reader of Python pickles, protocols 0 to 5, for insightface's verification sets: lists, tuples, bytes, text,
 * numbers, bools, and NumPy's arrays and scalars. A general unpickler calls any function that a file names. This one
 * has a closed list of names (pickle-names.ts), calls no Python code, and refuses a file with any other name.
 *
 * For any bytes it ends, in time linear in their number, with a value or a FacetrainError. Byte strings are views of
 * the input. Opcodes: CPython's Lib/pickletools.py.
 */
import { FacetrainError } from '@facetrain/api';
import { callGlobal, knownGlobal, setState } from './pickle-names.ts';
import { NotUnderstood, type PickleValue, Text, Tuple, unescaped } from './pickle-values.ts';

/**
 * Bounds the time, and the memory beyond a file's own size. A picture takes up to thirty steps; the usual sets have
 * some ten thousand pictures.
 */
const MAX_STEPS = 1 << 22;

/** The stack machine of the pickle format. */
class PickleMachine {
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

  /** Runs until STOP. */
  run(): PickleValue {
    for (let step = 0; step < MAX_STEPS; step++) {
      const opcode = this.#unsigned(1);
      switch (opcode < 0x80 ? String.fromCharCode(opcode) : opcode) {
        case 0x80: {
          const protocol = this.#unsigned(1);
          if (protocol > 5) throw new NotUnderstood(`protocol ${protocol}; known are 0 to 5`);
          break;
        }
        case 0x95: // FRAME: a length for readers of streams
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
        case 'G': {
          const at = this.position;
          this.#take(8);
          this.#push(this.#view.getFloat64(at));
          break;
        }
        case 'F': {
          const text = this.#shortLine();
          if (text.trim() === '') throw new NotUnderstood('a number is missing');
          this.#push(Number(text));
          break;
        }
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
          this.#push(knownGlobal(`${this.#shortLine()}.${this.#shortLine()}`));
          break;
        case 0x93: {
          const name = this.#pop();
          const module = this.#pop();
          if (!(name instanceof Text) || !(module instanceof Text)) throw new NotUnderstood('a name that is no text');
          this.#push(knownGlobal(`${module}.${name}`));
          break;
        }
        case 'R': {
          const args = this.#pop();
          this.#push(callGlobal(this.#pop(), args));
          break;
        }
        case 'b': {
          const state = this.#pop();
          setState(this.#stack.at(-1), state);
          break;
        }

        case 'i': // INST has the name in the file; other opcodes that make objects take it from the stack
          this.#push(knownGlobal(`${this.#shortLine()}.${this.#shortLine()}`));
          throw new NotUnderstood('it makes an object');
        default:
          throw new NotUnderstood(
            `opcode 0x${opcode.toString(16).padStart(2, '0')}, which no list of byte strings or bools needs`,
          );
      }
    }
    throw new NotUnderstood(`more than ${MAX_STEPS} steps`);
  }
}

/**
 * Reads a pickle.
 * @param subject the file, for the message
 * @throws FacetrainError InvalidVerificationSet
 */
export function unpickle(bytes: Uint8Array, subject: string): PickleValue {
  const machine = new PickleMachine(bytes);
  try {
    return machine.run();
  } catch (error) {
    if (!(error instanceof NotUnderstood)) throw error;
    throw new FacetrainError({
      code: 'InvalidVerificationSet',
      subject,
      found: `byte ${machine.position}: ${error.message}`,
      allowed:
        'a pickle of nothing but lists of byte strings (or uint8 arrays) and bools or numbers is read; ' +
        'other Python objects are refused, never run',
    });
  }
}
