/** For tests: a checkpoint of two class centres with one number each, written through a target. */
import type { CheckpointManifest } from '@facetrain/api';
import type { CheckpointTarget } from '../checkpoint/target.ts';
import { digestBytes } from '../storage/digest.ts';

export interface SmallCheckpoint {
  step: number;
  /** Name of the job; its uid is `u`. */
  job: string;
  /** 8 bytes. */
  rows: Uint8Array;
}

const BACKBONE = new Uint8Array(3);
const HEADER = new Uint8Array(2);
const BACKBONE_FILE = 'backbone.safetensors';
const ROW_FILE = 'rows-0000000000.safetensors';

/** Writes its files, without the manifest. */
export async function writeFiles(target: CheckpointTarget, { step, rows }: SmallCheckpoint): Promise<void> {
  for (const [file, parts] of [
    [BACKBONE_FILE, [BACKBONE]],
    [ROW_FILE, [HEADER, rows]],
  ] as const) {
    const writer = await target.create(step, file);
    for (const part of parts) await writer.write(part);
    await writer.finish();
  }
}

export function manifestOf({ step, job, rows }: SmallCheckpoint): CheckpointManifest {
  return {
    schemaVersion: 2,
    requires: [],
    job: { name: job, uid: 'u' },
    time: new Date(0).toISOString(),
    step,
    stepsPerEpoch: 1,
    worldSize: 1,
    seed: 1,
    numClasses: 2,
    embeddingDim: 1,
    precision: 'fp32',
    backbone: {
      file: BACKBONE_FILE,
      ...digestBytes(BACKBONE),
      dtype: 'float32',
      optimizer: 'SGD',
      state: [{ name: 'momentum', dtype: 'float32' }],
    },
    rows: {
      optimizer: 'SGD',
      tensors: [{ name: 'weight', dtype: 'float32', columns: 1 }],
      blockRows: 8192,
      files: [
        {
          file: ROW_FILE,
          bytes: HEADER.length + rows.length,
          header: digestBytes(HEADER),
          blocks: [{ firstRow: 0, rows: 2, offset: HEADER.length, sha256: digestBytes(rows).sha256 }],
        },
      ],
    },
    history: { lossFirst: 1, trainSeconds: 1, recentLosses: [1] },
  };
}
