import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { ExitCode, FacetrainError } from '@facetrain/api';
import { flushFolder, makeFolder, removeTemporaries, storageError, writeAtomically } from './atomic-files.ts';

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

test('folders with their parents’ permissions can be made by many at once, parents included', async () => {
  for (let round = 0; round < 300; round++) {
    const path = join(folder, 'many', String(round), 'a', 'b');
    await Promise.all(Array.from({ length: 16 }, () => makeFolder(path, { asOpenAsParent: true })));
    assert.deepEqual(await readdir(join(folder, 'many', String(round))), ['a']);
  }
});

test('a folder that the system refuses to make is an error, not an endless loop', async () => {
  await assert.rejects(makeFolder('/proc/facetrain/out'), { code: 'ENOENT' });
});

test('a file in the way of a folder is an error', async () => {
  await writeFile(join(folder, 'file'), '');
  await assert.rejects(makeFolder(join(folder, 'file')), {
    code: 'StorageFailed',
    message: `${join(folder, 'file')}: is a file; a folder, or a name that is free`,
  });
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

test('processes that write the same file at the same time do not share a temporary file', async () => {
  const target = join(folder, 'one');
  await Promise.all(Array.from({ length: 20 }, (_, index) => writeAtomically(target, `${index}`.repeat(1000))));
  assert.match(await readFile(target, 'utf8'), /^(\d+?)\1{999}$/);
  assert.deepEqual(
    (await readdir(folder)).filter((name) => name.endsWith('.tmp')),
    [],
  );
});

test('temporary files of dead writers of a file are removed, and no other', async () => {
  const left = join(folder, 'left');
  for (const name of ['.a.bin.1.tmp', '.a.bin.cafe.tmp', '.ab.bin.1.tmp', 'a.bin', '.a.bin.keep'])
    await writeAtomically(join(left, name), '');
  await removeTemporaries(join(left, 'a.bin'));
  assert.deepEqual((await readdir(left)).sort(), ['.a.bin.keep', '.ab.bin.1.tmp', 'a.bin']);
  await removeTemporaries(join(left, 'no', 'a.bin'));
});

test('a file system that cannot flush a folder is left alone, and one that fails is an error', async () => {
  // proc(5) has no fsync for folders: EINVAL.
  await flushFolder('/proc/self');
  await assert.rejects(flushFolder(join(folder, 'absent')), { code: 'StorageFailed' });
});

test('storage that fails for a while costs a restart; what only a user can change is refused', () => {
  const exitCode = (code: string) =>
    (storageError('/x', Object.assign(new Error(code), { code })) as FacetrainError).exitCode;
  for (const code of ['EIO', 'ESTALE', 'ETIMEDOUT']) assert.equal(exitCode(code), ExitCode.failure, code);
  for (const code of ['ENOSPC', 'EACCES', 'EROFS', 'ENOENT', 'ENOTDIR'])
    assert.equal(exitCode(code), ExitCode.refused, code);
});
