/**
 * TensorBoard's event files: TFRecords of `Event` messages, of which this writes scalars and histograms. Formats:
 * tensorflow/core/util/event.proto, framework/summary.proto, lib/io/record_writer.h, lib/hash/crc32c.h. Pure.
 */
import { Writer } from 'protobufjs/minimal.js';

/** Values that fell between limits: `counts[i]` of them are at most `limits[i]`, and above the limit before. */
export interface EventHistogram {
  min: number;
  max: number;
  count: number;
  sum: number;
  sumOfSquares: number;
  limits: readonly number[];
  counts: readonly number[];
}

export interface SummaryEvent {
  step: number;
  /** Seconds since 1970. */
  time: number;
  values: { tag: string; value: number | EventHistogram }[];
}

/** The bytes of an event file. */
export function eventFile(events: readonly SummaryEvent[], time: number): Uint8Array {
  const first = new Writer()
    .uint32(tag(1, FIXED64))
    .double(time)
    .uint32(tag(3, BYTES))
    .string('brain.Event:2')
    .finish();
  return Buffer.concat([record(first), ...events.map((event) => record(encode(event)))]);
}

/** Wire types of protocol buffers. */
const [VARINT, FIXED64, BYTES, FIXED32] = [0, 1, 2, 5];
const tag = (field: number, type: number) => (field << 3) | type;

/** Event: wall_time 1, step 2, summary 5. Summary: value 1. Value: tag 1, simple_value 2, histo 5. */
function encode({ step, time, values }: SummaryEvent): Uint8Array {
  const event = new Writer().uint32(tag(1, FIXED64)).double(time).uint32(tag(2, VARINT)).int64(step);
  event.uint32(tag(5, BYTES)).fork();
  for (const { tag: name, value } of values) {
    event.uint32(tag(1, BYTES)).fork();
    event.uint32(tag(1, BYTES)).string(name);
    if (typeof value === 'number') event.uint32(tag(2, FIXED32)).float(value);
    else {
      event.uint32(tag(5, BYTES)).fork();
      encodeHistogram(event, value);
      event.ldelim();
    }
    event.ldelim();
  }
  return event.ldelim().finish();
}

/** HistogramProto: min, max, num, sum, sum_squares 1 to 5; bucket_limit 6, bucket 7, packed. */
function encodeHistogram(to: Writer, { min, max, count, sum, sumOfSquares, limits, counts }: EventHistogram): void {
  [min, max, count, sum, sumOfSquares].forEach((value, index) => to.uint32(tag(index + 1, FIXED64)).double(value));
  for (const [field, numbers] of [[6, limits] as const, [7, counts] as const]) {
    to.uint32(tag(field, BYTES)).fork();
    for (const number of numbers) to.double(number);
    to.ldelim();
  }
}

/** Length and its checksum, the data and its checksum. */
function record(data: Uint8Array): Uint8Array {
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(data.byteLength));
  return Buffer.concat([length, checksum(length), data, checksum(data)]);
}

/** CRC-32C, rotated and with a constant added, so that checksums of data with checksums differ. */
function checksum(data: Uint8Array): Uint8Array {
  const crc = crc32c(data);
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE((((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0);
  return bytes;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
  return value;
});

/** Castagnoli's (RFC 3720, B.4). */
export function crc32c(data: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of data) crc = TABLE[(crc ^ byte) & 0xff]! ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
