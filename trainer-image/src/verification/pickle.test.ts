import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import fc from 'fast-check';
import { unpickle } from './pickle.ts';
import { NumpyArray, type PickleValue, Tuple } from './pickle-values.ts';

/**
 * `pickle.dumps(([numpy.array([0, 255, 10, 92, 13, 26], 'u1'), bytes([0, 255, 10, 92, 39])], [True, False]), protocol)`
 * for protocols 0 to 5, by Python 3.11 and NumPy 2.4.
 */
const written = [
  'KChscDAKY251bXB5Ll9jb3JlLm11bHRpYXJyYXkKX3JlY29uc3RydWN0CnAxCihjbnVtcHkKbmRhcnJheQpwMgooSTAKdHAzCmNf' +
    'Y29kZWNzCmVuY29kZQpwNAooVmIKcDUKVmxhdGluMQpwNgp0cDcKUnA4CnRwOQpScDEwCihJMQooSTYKdHAxMQpjbnVtcHkKZHR5' +
    'cGUKcDEyCihWdTEKcDEzCkkwMApJMDEKdHAxNApScDE1CihJMwpWfApwMTYKTk5OSS0xCkktMQpJMAp0cDE3CmJJMDAKZzQKKFZc' +
    'dTAwMDD/XHUwMDBhXHUwMDVjXHUwMDBkXHUwMDFhCnAxOApnNgp0cDE5ClJwMjAKdHAyMQpiYWc0CihWXHUwMDAw/1x1MDAwYVx1' +
    'MDA1YycKcDIyCmc2CnRwMjMKUnAyNAphKGxwMjUKSTAxCmFJMDAKYXRwMjYKLg==',
  'KF1xAChjbnVtcHkuX2NvcmUubXVsdGlhcnJheQpfcmVjb25zdHJ1Y3QKcQEoY251bXB5Cm5kYXJyYXkKcQIoSwB0cQNjX2NvZGVj' +
    'cwplbmNvZGUKcQQoWAEAAABicQVYBgAAAGxhdGluMXEGdHEHUnEIdHEJUnEKKEsBKEsGdHELY251bXB5CmR0eXBlCnEMKFgCAAAA' +
    'dTFxDUkwMApJMDEKdHEOUnEPKEsDWAEAAAB8cRBOTk5K/////0r/////SwB0cRFiSTAwCmgEKFgHAAAAAMO/ClwNGnESaAZ0cRNS' +
    'cRR0cRViaAQoWAYAAAAAw78KXCdxFmgGdHEXUnEYZV1xGShJMDEKSTAwCmV0cRou',
  'gAJdcQAoY251bXB5Ll9jb3JlLm11bHRpYXJyYXkKX3JlY29uc3RydWN0CnEBY251bXB5Cm5kYXJyYXkKcQJLAIVxA2NfY29kZWNz' +
    'CmVuY29kZQpxBFgBAAAAYnEFWAYAAABsYXRpbjFxBoZxB1JxCIdxCVJxCihLAUsGhXELY251bXB5CmR0eXBlCnEMWAIAAAB1MXEN' +
    'iYiHcQ5ScQ8oSwNYAQAAAHxxEE5OTkr/////Sv////9LAHRxEWKJaARYBwAAAADDvwpcDRpxEmgGhnETUnEUdHEVYmgEWAYAAAAA' +
    'w78KXCdxFmgGhnEXUnEYZV1xGSiIiWWGcRou',
  'gANdcQAoY251bXB5Ll9jb3JlLm11bHRpYXJyYXkKX3JlY29uc3RydWN0CnEBY251bXB5Cm5kYXJyYXkKcQJLAIVxA0MBYnEEh3EF' +
    'UnEGKEsBSwaFcQdjbnVtcHkKZHR5cGUKcQhYAgAAAHUxcQmJiIdxClJxCyhLA1gBAAAAfHEMTk5OSv////9K/////0sAdHENYolD' +
    'BgD/ClwNGnEOdHEPYkMFAP8KXCdxEGVdcREoiIllhnESLg==',
  'gASVowAAAAAAAABdlCiMFm51bXB5Ll9jb3JlLm11bHRpYXJyYXmUjAxfcmVjb25zdHJ1Y3SUk5SMBW51bXB5lIwHbmRhcnJheZST' +
    'lEsAhZRDAWKUh5RSlChLAUsGhZRoBIwFZHR5cGWUk5SMAnUxlImIh5RSlChLA4wBfJROTk5K/////0r/////SwB0lGKJQwYA/wpc' +
    'DRqUdJRiQwUA/wpcJ5RlXZQoiIllhpQu',
  'gAWVjgAAAAAAAABdlCiME251bXB5Ll9jb3JlLm51bWVyaWOUjAtfZnJvbWJ1ZmZlcpSTlCiWBgAAAAAAAAAA/wpcDRqUjAVudW1w' +
    'eZSMBWR0eXBllJOUjAJ1MZSJiIeUUpQoSwOMAXyUTk5OSv////9K/////0sAdJRiSwaFlIwBQ5R0lFKUQwUA/wpcJ5RlXZQoiIll' +
    'hpQu',
].map((text) => Buffer.from(text, 'base64'));

const latin1 = (text: string) => Buffer.from(text, 'latin1');
const read = (bytes: Uint8Array) => unpickle(bytes, 'set.bin');

/** Values without our classes, to compare. */
function plain(value: PickleValue): unknown {
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex');
  if (value instanceof NumpyArray) return { [value.dtype.code]: Buffer.from(value.data).toString('hex') };
  if (value instanceof Tuple) return { tuple: value.items.map(plain) };
  return Array.isArray(value) ? value.map(plain) : value;
}

function refusal(bytes: Uint8Array): string {
  try {
    read(bytes);
  } catch (error) {
    assert.ok(error instanceof FacetrainError, String(error));
    assert.equal(error.code, 'InvalidVerificationSet');
    assert.equal(error.subject, 'set.bin');
    return error.found;
  }
  return assert.fail('it was read');
}

test('every protocol gives the same pictures and answers', () => {
  for (const bytes of written)
    assert.deepEqual(plain(read(bytes)), {
      tuple: [
        [{ u1: '00ff0a5c0d1a' }, '00ff0a5c27'],
        [true, false],
      ],
    });
});

test('names from before NumPy 2 are known', () => {
  for (const bytes of written.slice(0, 4)) {
    const older = latin1(bytes.toString('latin1').replace('numpy._core', 'numpy.core'));
    assert.notDeepEqual(older, bytes);
    assert.deepEqual(plain(read(older)), plain(read(bytes)));
  }
});

test('an array of bools', () => {
  const bytes = Buffer.from(
    'gASVjwAAAAAAAABdlIwWbnVtcHkuX2NvcmUubXVsdGlhcnJheZSMDF9yZWNvbnN0cnVjdJSTlIwFbnVtcHmUjAduZGFycmF5lJOU' +
      'SwCFlEMBYpSHlFKUKEsBSwKFlGgEjAVkdHlwZZSTlIwCYjGUiYiHlFKUKEsDjAF8lE5OTkr/////Sv////9LAHSUYolDAgEAlHSU' +
      'YoaULg==',
    'base64',
  );
  assert.deepEqual(plain(read(bytes)), { tuple: [[], { b1: '0100' }] });
});

test('the strings of Python 2', () => {
  assert.deepEqual(plain(read(latin1("(lp0\nS'\\x00\\xff\\n\\\\\\'\"'\np1\naS\"it's\"\np2\na."))), [
    '00ff0a5c2722',
    Buffer.from("it's").toString('hex'),
  ]);
  assert.deepEqual(plain(read(latin1('\x80\x02]q\x00(U\x02\x00\xffq\x01T\x03\x00\x00\x00abcq\x02e.'))), [
    '00ff',
    '616263',
  ]);
});

test('integers', () => {
  assert.deepEqual(
    plain(
      read(
        latin1(
          '(I-5\nL7L\nJ\xfe\xff\xff\xffK\x80M\x00\x80\x8a\x00\x8a\x02\x00\xff\x8b\x01\x00\x00\x00\x7fI00\nI01\nNl.',
        ),
      ),
    ),
    [-5, 7, -2, 128, 32768, 0, -256, 127, false, true, null],
  );
});

test('any other name is refused, in every way to write it, and named in the message', () => {
  const malicious = {
    'os.system': "cos\nsystem\n(S'touch /tmp/x'\ntR.",
    'posix.system': '\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.',
    'builtins.eval': '\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.',
    'subprocess.Popen': "(S'id'\nisubprocess\nPopen\n.",
    '__builtin__.bytes': 'c__builtin__\nbytes\n)R.',
    'numpy.load': 'cnumpy\nload\n.',
    '_codecs.decode': 'c_codecs\ndecode\n.',
    'numpy.core.multiarray.arange': 'cnumpy.core.multiarray\narange\n.',
  };
  for (const [name, text] of Object.entries(malicious))
    assert.match(refusal(latin1(text)), new RegExp(`refers to "${name.replaceAll('.', '\\.')}"`));
  // The same inside a set that is otherwise valid.
  assert.match(refusal(Buffer.concat([written[2]!.subarray(0, -1), latin1('0cos\nsystem\n.')])), /opcode 0x30/);
  assert.match(
    refusal(Buffer.concat([written[2]!.subarray(0, -1), latin1('cos\nsystem\n.')])),
    /refers to "os\.system"/,
  );
});

test('opcodes that make objects without a name, or from outside the file, are refused', () => {
  for (const opcode of [
    '\x81',
    '\x92',
    'o',
    'P1\n',
    'Q',
    '\x82\x01',
    '\x83\x01\x00',
    '\x84\x01\x00\x00\x00',
    '\x97',
    '\x98',
    '}',
    '\x8f',
  ]) {
    assert.match(refusal(latin1(`\x80\x05${opcode}.`)), /opcode 0x/);
  }
});

test('the known names do only what sets need', () => {
  const calls: Record<string, RegExp> = {
    'c_codecs\nencode\n(Vx\nVutf-8\ntR.': /arguments that encode/,
    'c_codecs\nencode\n(Vx\ntR.': /arguments that encode/,
    'c_codecs\nencode\nN\x85R.': /arguments that encode/,
    'c_codecs\nencode\nNR.': /no function/,
    'NN\x85R.': /no function/,
    'cnumpy\nndarray\n)R.': /arguments that ndarray/,
    'cnumpy\ndtype\n(Vc16\ntR.': /an array of "c16"/,
    'cnumpy\ndtype\n(VM8\ntR.': /an array of "M8"/,
    'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\ntR.': /arguments that reconstruct/,
    'cnumpy.core.numeric\n_frombuffer\n(NNNtR.': /NumPy does not write/,
    '(lNb.': /NumPy does not write/,
    '(l)b.': /no array/,
  };
  for (const [text, message] of Object.entries(calls)) assert.match(refusal(latin1(text)), message);
  const shape = (size: string) =>
    latin1(`cnumpy.core.numeric\n_frombuffer\n(C\x03abccnumpy\ndtype\n(Vu1\ntR(${size}tVC\ntR.`);
  assert.deepEqual(plain(read(shape('K\x03K\x01'))), { u1: '616263' });
  for (const size of ['K\x04', 'K\x03K\x02', 'J\xff\xff\xff\xffJ\xfd\xff\xff\xff', 'N', 'K\x00'])
    assert.match(refusal(shape(size)), /array of/);
});

test('a file that is cut anywhere is refused', () => {
  for (const bytes of written) {
    for (let length = 0; length < bytes.length; length++) refusal(bytes.subarray(0, length));
  }
});

test('lengths are checked against the file', () => {
  for (const text of [
    'B\xff\xff\xff\xff',
    '\x8e\xff\xff\xff\xff\xff\xff\xff\xff',
    '\x96\xff\xff\xff\xff\xff\xff\xff\x7f',
    'X\xff\xff\xff\xff',
    '\x8d\0\0\0\0\0\0\0\x10',
    'T\xff\xff\xff\xff',
    '\x8b\xff\xff\xff\xff',
    '\x8a\xff',
    `I${'9'.repeat(300)}\n`,
    `V${'x'.repeat(1000)}`,
  ]) {
    refusal(latin1(`${text}.`));
  }
});

test('a small file cannot make a large value', () => {
  // One text of 1 MB, encoded a thousand times, is one array of bytes.
  const big = Buffer.concat([
    latin1(`c_codecs\nencode\nq\0(V`),
    Buffer.alloc(1 << 20, 'x'),
    latin1('\nq\x01Vlatin1\nq\x02tRq\x031'),
  ]).subarray(0, -1);
  const again = latin1('h\0h\x01h\x02\x86R').toString('latin1').repeat(1000);
  const value = read(Buffer.concat([latin1('('), big, latin1(again), latin1('l.')])) as Uint8Array[];
  assert.equal(value.length, 1001);
  assert.equal(new Set(value.map((bytes) => bytes.buffer)).size, 1);

  for (const opcode of ['N', '(']) assert.match(refusal(Buffer.alloc(5 << 20, opcode)), /more than 4194304 steps/);
});

test('a list that contains itself is read', () => {
  const value = read(latin1('(lp0\ng0\na.')) as PickleValue[];
  assert.equal(value[0], value);
});

/** A writer of protocols 0 and 3, for round trips. */
function pickle(pictures: Uint8Array[], protocol: 0 | 3): Uint8Array {
  const one = (bytes: Uint8Array): Buffer => {
    if (protocol === 3) {
      const length = Buffer.alloc(4);
      length.writeUInt32LE(bytes.length);
      return Buffer.concat([latin1('B'), length, bytes]);
    }
    const escaped = [...bytes]
      .map((byte) =>
        [0, 10, 13, 26, 92].includes(byte) ? `\\u00${byte.toString(16).padStart(2, '0')}` : String.fromCharCode(byte),
      )
      .join('');
    return latin1(`c_codecs\nencode\n(V${escaped}\nVlatin1\ntR`);
  };
  return Buffer.concat([latin1('('), ...pictures.map(one), latin1('l.')]);
}

test('property: a written value is read back', () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 40 })), fc.constantFrom<0 | 3>(0, 3), (pictures, protocol) => {
      assert.deepEqual(
        plain(read(pickle(pictures, protocol))),
        pictures.map((bytes) => Buffer.from(bytes).toString('hex')),
      );
    }),
  );
});

test('property: any bytes end in a value or a refusal', () => {
  const tokens = [
    '(',
    ')',
    'N',
    '\x88',
    'K\x05',
    'C\x02ab',
    'Vu1\n',
    'Vlatin1\n',
    'c_codecs\nencode\n',
    'cnumpy\ndtype\n',
    'cnumpy\nndarray\n',
    'cnumpy.core.multiarray\n_reconstruct\n',
    ']',
    'a',
    'e',
    'l',
    't',
    '\x85',
    '\x86',
    '\x87',
    'R',
    'b',
    'q\0',
    'h\0',
    '\x94',
    '\x93',
    '.',
    '\x80\x04',
    'I1\n',
    'p1\n',
    'g1\n',
  ];
  const programs = fc.array(fc.constantFrom(...tokens), { maxLength: 60 }).map((parts) => latin1(parts.join('')));
  const damaged = fc
    .tuple(fc.constantFrom(...written), fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 }))
    .map(([bytes, changes]) => {
      const copy = Buffer.from(bytes);
      for (const [at, value] of changes) copy[at % copy.length] = value;
      return copy;
    });
  fc.assert(
    fc.property(fc.oneof(fc.uint8Array({ maxLength: 100 }), programs, damaged), (bytes) => {
      try {
        read(bytes);
      } catch (error) {
        if (!(error instanceof FacetrainError)) throw error;
      }
    }),
    { numRuns: 3000 },
  );
});
