import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { FacetrainError, type StoredType } from '@facetrain/api';
import fc from 'fast-check';
import { Safetensors, safetensorsHeader } from './safetensors.ts';

const folder = await mkdtemp(join(tmpdir(), 'safetensors-'));
after(() => rm(folder, { recursive: true }));

function file(header: unknown, data = new Uint8Array(0)): Uint8Array {
  const text = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, data]);
}

/** A file with these tensors, of bytes that are of the type. */
function written(tensors: Record<string, { dtype?: StoredType; dims: number[]; data: Float32Array | Uint16Array }>) {
  const entries = Object.entries(tensors).map(([name, { dtype = 'float32', dims }]) => ({ name, dtype, dims }));
  const data = Object.values(tensors).map(({ data: { buffer, byteOffset, byteLength } }) =>
    Buffer.from(buffer, byteOffset, byteLength),
  );
  return Buffer.concat([safetensorsHeader(entries), ...data]);
}

async function refusal(bytes: Uint8Array): Promise<FacetrainError> {
  const path = join(folder, 'hostile.safetensors');
  await writeFile(path, bytes);
  const error = await Safetensors.open(path).then(
    () => assert.fail('opened'),
    (error: unknown) => error,
  );
  assert(error instanceof FacetrainError, String(error));
  assert.equal(error.code, 'InvalidCheckpoint');
  assert.equal(error.subject, path);
  return error;
}

test('a written file is read back, whole and in parts', async () => {
  const path = join(folder, 'round.safetensors');
  const values = Float32Array.of(1, -2, 3.5, Number.MIN_VALUE, -0, 1e38);
  const tensors = {
    'größe/a': { dims: [2, 3], data: values },
    scalar: { dims: [], data: Float32Array.of(7) },
    __proto__name: { dims: [0, 4], data: new Float32Array(0) },
    // 1, -2 and the smallest normal number of bfloat16.
    short: { dtype: 'bfloat16' as const, dims: [3], data: Uint16Array.of(0x3f80, 0xc000, 0x0080) },
  };
  await writeFile(path, written(tensors));
  await using opened = await Safetensors.open(path);
  assert.deepEqual(opened.names, Object.keys(tensors));
  assert.deepEqual(opened.dims('größe/a'), [2, 3]);
  assert.deepEqual(await opened.read('größe/a'), values);
  assert.deepEqual(await opened.read('größe/a', 1, 3), values.slice(1, 4));
  assert.deepEqual(await opened.read('scalar'), Float32Array.of(7));
  assert.deepEqual(await opened.read('__proto__name'), new Float32Array(0));
  assert.deepEqual(await opened.read('short'), Float32Array.of(1, -2, 2 ** -126));
  assert.deepEqual(await opened.read('short', 1, 1), Float32Array.of(-2));
  await assert.rejects(opened.read('größe/a', 4, 3), RangeError);
  await assert.rejects(opened.read('other'), /no tensor "other"/);
});

test('a header that does not describe its file is refused, with the reason', async () => {
  const tensor = (shape: unknown, data_offsets: unknown, dtype = 'F32') => ({ dtype, shape, data_offsets });
  const eight = new Uint8Array(8);
  const cases: [string, Uint8Array, RegExp][] = [
    ['too short', eight.subarray(1), /7 bytes/],
    [
      'header longer than the file',
      Buffer.concat([Buffer.from([255, 255, 255, 255, 255, 255, 255, 255]), eight]),
      /a header of 18446744073709552000 bytes in a file of 16/,
    ],
    ['no JSON', file('{'), /not JSON/],
    ['no UTF-8', Buffer.concat([Buffer.from([1, 0, 0, 0, 0, 0, 0, 0, 255])]), /not JSON/],
    ['an array', file([]), /no object/],
    ['null', file('null'), /no object/],
    ['a null tensor', file({ a: null }), /of type undefined/],
    ['another type', file({ a: tensor([2], [0, 8], 'F64') }, eight), /of type "F64"; F32, BF16/],
    ['negative size', file({ a: tensor([-2], [0, 8]) }, eight), /shape \[-2\]/],
    ['fractional size', file({ a: tensor([1.5], [0, 6]) }, eight), /shape \[1.5\]/],
    ['sizes that overflow', file({ a: tensor([2 ** 40, 2 ** 40], [0, 8]) }, eight), /8 bytes for the shape/],
    ['offsets backwards', file({ a: tensor([2], [8, 0]) }, eight), /-8 bytes for the shape/],
    ['offsets missing', file({ a: tensor([2], [0]) }, eight), /the offsets \[0\]/],
    ['beyond the end', file({ a: tensor([3], [0, 12]) }, eight), /71 bytes; 75 bytes, as the header says/],
    ['a hole', file({ a: tensor([1], [4, 8]) }, eight), /starts at byte/],
    ['an overlap', file({ a: tensor([2], [0, 8]), b: tensor([1], [4, 8]) }, eight), /"b" starts at byte/],
    ['hidden bytes at the end', file({ a: tensor([1], [0, 4]) }, eight), /as the header says/],
  ];
  for (const [name, bytes, message] of cases) assert.match((await refusal(bytes)).message, message, name);
});

test('a damaged file is read or refused, and nothing else happens', async () => {
  const good = written({
    a: { dims: [2, 2], data: Float32Array.of(1, 2, 3, 4) },
    b: { dims: [3], data: Float32Array.of(5, 6, 7) },
  });
  const damaged = join(folder, 'damaged.safetensors');
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 }),
      fc.nat(good.length),
      async (changes, length) => {
        const bytes = Buffer.from(good);
        for (const [at, value] of changes) bytes[at] = value;
        await writeFile(damaged, length === 0 ? bytes : bytes.subarray(0, length));
        try {
          await using opened = await Safetensors.open(damaged);
          for (const name of opened.names) {
            const values = await opened.read(name);
            assert.equal(
              values.length,
              opened.dims(name).reduce((product, dim) => product * dim, 1),
            );
          }
        } catch (error) {
          assert(error instanceof FacetrainError && error.code === 'InvalidCheckpoint', String(error));
        }
      },
    ),
    { numRuns: 300 },
  );
});
