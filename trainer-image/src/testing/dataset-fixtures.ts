/** Writes datasets for tests. */

import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { exampleFaces } from '../../../hack/lib/paths.mjs';

/** The JPEG of a picture of the example's dataset, which has a header record, and pictures at keys 1 to 800. */
export function shippedJpeg(picture: number): Buffer {
  const index = readFileSync(join(exampleFaces, 'train.idx'), 'latin1').split('\n');
  const offset = Number(index[picture + 1]!.split('\t')[1]);
  const file = readFileSync(join(exampleFaces, 'train.rec'));
  return file.subarray(offset + 8 + 24, offset + 8 + file.readUInt32LE(offset + 4));
}

/**
 * Writes train.rec, train.idx and property: record i has key i, and there is no header record.
 * @returns the offset of each record
 */
export function writeDataset(
  directory: string,
  property: string,
  records: { label: number; jpeg: Uint8Array }[],
): number[] {
  let offset = 0;
  const offsets: number[] = [];
  const parts = records.map(({ label, jpeg }) => {
    offsets.push(offset);
    const head = Buffer.alloc(8 + 24);
    head.writeUInt32LE(0xced7230a, 0);
    head.writeUInt32LE(24 + jpeg.length, 4);
    head.writeFloatLE(label, 12);
    const record = Buffer.concat([head, jpeg, Buffer.alloc(-jpeg.length & 3)]);
    offset += record.length;
    return record;
  });
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, 'train.rec'), Buffer.concat(parts));
  writeFileSync(join(directory, 'train.idx'), offsets.map((at, key) => `${key}\t${at}\n`).join(''));
  writeFileSync(join(directory, 'property'), property);
  return offsets;
}

/** Writes ID/picture.jpg with pictures of the example's dataset, which has 20 of each person: person-0/0.jpg, … */
export function writeImageFolder(
  directory: string,
  { identities, perIdentity }: { identities: number; perIdentity: number },
): void {
  for (let identity = 0; identity < identities; identity++) {
    const folder = join(directory, `person-${identity}`);
    mkdirSync(folder, { recursive: true });
    for (let i = 0; i < perIdentity; i++) writeFileSync(join(folder, `${i}.jpg`), shippedJpeg(20 * identity + i));
  }
}

/** Packs pictures of the example's dataset into 0.tar by GNU tar, in webdataset's layout. */
export function writeShards(directory: string, labels: number[]): void {
  const members = mkdtempSync(join(tmpdir(), 'facetrain-shard-'));
  labels.forEach((label, i) => {
    const key = join(members, String(i).padStart(6, '0'));
    writeFileSync(`${key}.jpg`, shippedJpeg(i));
    writeFileSync(`${key}.cls`, String(label));
  });
  mkdirSync(directory, { recursive: true });
  execFileSync('tar', ['--sort=name', '-C', members, '-cf', join(directory, '0.tar'), '.']);
  rmSync(members, { recursive: true });
}
