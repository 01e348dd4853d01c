import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import { makeFolder, writeAtomically } from './atomic-files.ts';

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'atomic-'));
});
after(() => rm(folder, { recursive: true }));

test('several calls can make the same folders at once', async () => {
  for (let round = 0; round < 50; round++) {
    const path = join(folder, 'shared', String(round), 'a', 'b');
    await Promise.all(Array.from({ length: 8 }, () => makeFolder(path)));
    assert.ok((await stat(path)).isDirectory());
  }
});

test('a folder that the system refuses to make is an error, not an endless loop', async () => {
  await assert.rejects(makeFolder('/proc/facetrain/out'), { code: 'ENOENT' });
});

test('a file in the way of a folder is an error', async () => {
  await writeFile(join(folder, 'file'), '');
  await assert.rejects(makeFolder(join(folder, 'file')), { code: 'EEXIST' });
  await assert.rejects(makeFolder(join(folder, 'file', 'below')), { code: 'ENOTDIR' });
});

test('a write that fails leaves no file', async () => {
  const target = join(folder, 'target');
  const failing = writeAtomically(join(target, 'file.bin'), async (file) => {
    await file.writeFile('half');
    throw Object.assign(new Error('full'), { code: 'ENOSPC' });
  });
  await assert.rejects(failing, (error) => error instanceof FacetrainError && error.code === 'DiskFull');
  assert.deepEqual(await readdir(target), []);
});
