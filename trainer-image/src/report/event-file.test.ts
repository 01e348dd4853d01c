/** Event files, decoded here by what their formats say. TensorBoard 2.21 has read such a file, by hand. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Reader } from 'protobufjs/minimal.js';
import { crc32c, eventFile } from './event-file.ts';
import { histogram } from './histogram.ts';

/** The data of the records, whose lengths and checksums must be right. */
function recordsOf(file: Uint8Array): Buffer[] {
  const bytes = Buffer.from(file);
  const unmasked = (at: number) => {
    const rotated = (bytes.readUInt32LE(at) - 0xa282ead8) >>> 0;
    return ((rotated >>> 17) | (rotated << 15)) >>> 0;
  };
  const records: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = Number(bytes.readBigUInt64LE(at));
    assert.equal(unmasked(at + 8), crc32c(bytes.subarray(at, at + 8)));
    const data = bytes.subarray(at + 12, at + 12 + length);
    assert.equal(unmasked(at + 12 + length), crc32c(data));
    records.push(data);
    at += 16 + length;
  }
  return records;
}

type Message = Map<number, unknown[]>;

/** Fields of a message by number, in order: numbers as doubles or floats, the rest as bytes. */
function decode(data: Uint8Array): Message {
  const reader = Reader.create(data);
  const fields: Message = new Map();
  while (reader.pos < reader.len) {
    const tag = reader.uint32();
    // By wire type.
    const read: Record<number, () => unknown> = {
      0: () => Number(reader.uint64()),
      1: () => reader.double(),
      2: () => reader.bytes(),
      5: () => reader.float(),
    };
    fields.set(tag >>> 3, [...(fields.get(tag >>> 3) ?? []), read[tag & 7]!()]);
  }
  return fields;
}
const text = (value: unknown) => Buffer.from(value as Uint8Array).toString();
const doubles = (value: unknown) => {
  const bytes = Buffer.from(value as Uint8Array);
  return Array.from({ length: bytes.length / 8 }, (_, i) => bytes.readDoubleLE(8 * i));
};

test('the checksum is Castagnoli’s', () => {
  // RFC 3720, B.4, and the check value of the algorithm.
  assert.equal(crc32c(Buffer.alloc(32)), 0x8a9136aa);
  assert.equal(crc32c(Buffer.from('123456789')), 0xe3069283);
});

test('scalars and histograms, one record for each event', () => {
  const found = { min: -1, max: 2, count: 3, sum: 1.5, sumOfSquares: 5.25, limits: [0, 1, 2], counts: [1, 0, 2] };
  const events = [
    {
      step: 300,
      time: 1.5,
      values: [
        { tag: 'loss', value: 2.25 },
        { tag: 'norm', value: found },
      ],
    },
    { step: 2 ** 40, time: 3, values: [{ tag: 'ünï', value: -1 }] },
  ];
  const [version, first, second, ...more] = recordsOf(eventFile(events, 99)).map(decode);
  assert.equal(more.length, 0);
  assert.deepEqual([version!.get(1), text(version!.get(3)![0])], [[99], 'brain.Event:2']);
  assert.deepEqual([first!.get(1), first!.get(2)], [[1.5], [300]]);
  const [loss, norm] = (decode(first!.get(5)![0] as Uint8Array).get(1) as Uint8Array[]).map(decode);
  assert.deepEqual([text(loss!.get(1)![0]), loss!.get(2)], ['loss', [2.25]]);
  const proto = decode(norm!.get(5)![0] as Uint8Array);
  assert.deepEqual(
    [1, 2, 3, 4, 5].map((field) => proto.get(field)![0]),
    [-1, 2, 3, 1.5, 5.25],
  );
  assert.deepEqual([doubles(proto.get(6)![0]), doubles(proto.get(7)![0])], [found.limits, found.counts]);
  assert.deepEqual(second!.get(2), [2 ** 40]);
  assert.equal(text(decode(decode(second!.get(5)![0] as Uint8Array).get(1)![0] as Uint8Array).get(1)![0]), 'ünï');
});

test('a histogram counts every value once, also where all are equal', () => {
  const values = Float64Array.from({ length: 1000 }, (_, i) => Math.sin(i));
  const found = histogram(values);
  assert.equal(
    found.counts.reduce((sum, count) => sum + count, 0),
    1000,
  );
  const width = (found.max - found.min) / found.counts.length;
  assert.equal(found.counts[0], values.filter((value) => value < found.min + width).length);
  assert.equal(histogram([3, 3, 3]).counts[0], 3);
});
