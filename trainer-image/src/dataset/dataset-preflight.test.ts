import assert from 'node:assert/strict';
import { copyFileSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import { exampleFaces } from '../../../hack/lib/paths.mjs';
import { shippedJpeg, writeDataset, writeImageFolder, writeShards } from '../testing/dataset-fixtures.ts';
import { type PreflightOptions, preflightDataset } from './dataset-preflight.ts';

const scratch = mkdtempSync(join(tmpdir(), 'facetrain-preflight-'));
after(() => rmSync(scratch, { recursive: true }));

let folders = 0;
const folder = () => join(scratch, String(folders++));
const options: PreflightOptions = {
  numClasses: null,
  input: { height: 112, width: 112 },
  globalBatchSize: 8,
  maxBadPictures: 0,
  decode: 'all',
};
const jpeg = shippedJpeg(0);
const records = (labels: number[]) => labels.map((label) => ({ label, jpeg }));
const written = (property: string, labels: number[]) => {
  const directory = folder();
  writeDataset(directory, property, records(labels));
  return directory;
};

async function refused(
  directory: string,
  message: string | RegExp,
  change: Partial<PreflightOptions> = {},
): Promise<void> {
  await assert.rejects(preflightDataset(directory, { ...options, ...change }), (error) => {
    assert.ok(error instanceof FacetrainError, String(error));
    assert.equal(error.code, 'InvalidDataset');
    assert.equal(error.exitCode, 2);
    if (typeof message === 'string') assert.equal(error.message, message);
    else assert.match(error.message, message);
    return true;
  });
}

test('the example’s dataset is valid', async () => {
  for (const decode of ['all', 'sample', 'none'] as const) {
    assert.deepEqual(await preflightDataset(exampleFaces, { ...options, decode, globalBatchSize: 32 }), {
      images: 800,
      identities: 40,
      numClasses: 40,
      stepsPerEpoch: 25,
      badPictures: [],
      folders: null,
    });
  }
  assert.equal(
    (await preflightDataset(exampleFaces, { ...options, numClasses: 64, globalBatchSize: 33 })).numClasses,
    64,
  );
});

test('a folder or a file that is missing', async () => {
  await refused(
    '/nowhere',
    '/nowhere: cannot be read (No such file or directory); ' +
      'a dataset is a folder with train.rec, train.idx and property; with *.tar; ' +
      'or with a folder of pictures for each identity',
  );
  for (const file of ['train.rec', 'train.idx', 'property']) {
    const directory = written('2,112,112', [0, 1]);
    rmSync(join(directory, file));
    await refused(
      directory,
      new RegExp(`^${directory}/${file}: ${file === 'property' ? 'is missing; .*: 2,112,112 ' : 'cannot be opened'}`),
    );
  }
});

test('an image folder and tar shards, as datasets', async () => {
  const faces = folder();
  writeImageFolder(faces, { identities: 3, perIdentity: 4 });
  const shards = folder();
  writeShards(shards, [0, 5, 1, 0, 5, 2, 2, 1, 0, 1, 5, 2]);
  for (const [directory, identities, folders] of [
    [faces, 3, ['person-0', 'person-1', 'person-2']],
    [shards, 6, null],
  ] as const) {
    const expected = { images: 12, identities, numClasses: identities, stepsPerEpoch: 1, badPictures: [], folders };
    for (const decode of ['all', 'none'] as const)
      assert.deepEqual(await preflightDataset(directory, { ...options, decode }), expected);
  }
  writeFileSync(join(faces, 'person-1', '2.jpg'), 'GIF89a, honestly');
  await refused(faces, new RegExp(`^${faces}: 1 bad picture \\(${faces}/person-1/2.jpg: is a GIF\\)`));
  await refused(folder(), /^.*: cannot be read \(No such file or directory\)/);
});

test('one identity: no loss could teach anything', async () => {
  const photos = folder();
  writeImageFolder(photos, { identities: 1, perIdentity: 10 });
  for (const numClasses of [null, 10])
    await refused(photos, /: one identity; two or more; an image folder has a folder of pictures for each/, {
      numClasses,
    });
});

test('a .rec that was cut short is refused without decoding anything', async () => {
  const directory = folder();
  const offsets = writeDataset(directory, '2,112,112', records([0, 1, 0]));
  truncateSync(join(directory, 'train.rec'), offsets[2]! + 1000);
  const length = 24 + jpeg.length;
  const found = `it needs ${length} bytes, and the file has 992 left: the file was cut short`;
  await refused(
    directory,
    `${directory}/train.rec, record 2 at byte ${offsets[2]}: ${found}; ` +
      'the file is damaged, or train.idx belongs to another',
    { decode: 'none' },
  );
  truncateSync(join(directory, 'train.rec'), offsets[2]!);
  await refused(
    directory,
    /train\.rec: has \d+ bytes, but train\.idx places record 2 at byte \d+; the file was cut short, or/,
    { decode: 'none' },
  );
});

test('an index that belongs to another file', async () => {
  const directory = written('2,112,112', [0, 1]);
  copyFileSync(join(exampleFaces, 'train.rec'), join(directory, 'train.rec'));
  await refused(
    directory,
    /record 1 at byte \d+: no record starts at byte \d+; the file is damaged, or train.idx belongs to another/,
  );
});

test('a record of another kind is named; only decoding finds it', async () => {
  const directory = folder();
  const offsets = writeDataset(directory, '3,112,112', [
    ...records([0, 1]),
    { label: 2, jpeg: Buffer.from('GIF89a, honestly') },
    ...records([0, 0, 0, 0, 0]),
  ]);
  const message = new RegExp(
    `^${directory}: 1 bad picture ` +
      `\\(${directory}/train.rec, record 2 at byte ${offsets[2]}: is a GIF\\); at most 0 of 8`,
  );
  await refused(directory, message);
  await refused(directory, message, { decode: 'sample' }); // All of a dataset of eight.
  await preflightDataset(directory, { ...options, decode: 'none' });
});

test('labels outside the classes of property', async () => {
  const directory = written('3,112,112', [0, 1, 2, 3]);
  await refused(
    directory,
    new RegExp(
      'train.rec, record 3 at byte \\d+: its label is 3; ' +
        'property has 3 identities, so labels are whole numbers from 0 to 2$',
    ),
    { decode: 'none' },
  );
});

test('fewer classes in the model than the data has', async () => {
  const directory = written('10,112,112', [0, 1, 2, 3, 4, 0, 0, 0]);
  await refused(
    directory,
    `${directory}: labels up to 4; labels up to 3, as model.numClasses is 4: give it 5 or more`,
    {
      numClasses: 4,
    },
  );
  assert.equal((await preflightDataset(directory, { ...options, numClasses: 5 })).numClasses, 5);
});

test('pictures of another size than the model takes', async () => {
  await refused(
    exampleFaces,
    `${exampleFaces}: pictures of 112 x 112 pixels (height x width); the model takes 96 x 112; ` +
      'faces are aligned to this size beforehand (docs/data.md)',
    { input: { height: 96, width: 112 } },
  );
  const directory = written('2,96,112', [0, 1]); // The size in `property` is wrong.
  await refused(directory, /2 bad pictures \(.*record 0 at byte 0: has 112 x 112 pixels \(height x width\); /, {
    input: { height: 96, width: 112 },
  });
});

test('a global batch larger than the dataset', async () => {
  await refused(
    exampleFaces,
    `${exampleFaces}: 800 pictures; a global batch takes 801: more pictures, or a smaller batch`,
    { globalBatchSize: 801, decode: 'none' },
  );
});

test('an abort ends it with its reason', async () => {
  const controller = new AbortController();
  const reason = new Error('enough');
  const checking = preflightDataset(exampleFaces, { ...options, signal: controller.signal });
  controller.abort(reason);
  await assert.rejects(checking, (error) => error === reason);
  await assert.rejects(
    preflightDataset(exampleFaces, { ...options, signal: controller.signal }),
    (error) => error === reason,
  );
});

test('bad pictures within the budget are named, and more are refused with the field', async () => {
  const directory = folder();
  const gif = { label: 1, jpeg: Buffer.from('GIF89a') };
  writeDataset(directory, '2,112,112', [...records([0, 1, 0]), gif, ...records([0, 1]), gif, ...records([0])]);
  const { images, badPictures } = await preflightDataset(directory, { ...options, maxBadPictures: 0.25 });
  assert.equal(images, 8);
  assert.deepEqual(
    badPictures.map(({ picture, reason }) => [picture, reason]),
    [
      [3, 'is a GIF'],
      [6, 'is a GIF'],
    ],
  );
  await refused(
    directory,
    /: 2 bad pictures \(.*record 3 at .*: is a GIF; .*record 6 .*\); at most 1 of 8 by dataset\.maxBadPictures 0\.1;/,
    { maxBadPictures: 0.1 },
  );
});
