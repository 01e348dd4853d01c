import assert from 'node:assert/strict';
import { copyFile, mkdir, readFile, rename } from 'node:fs/promises';
import { test } from 'node:test';
import { fileCause } from './file-cause.ts';

const cases: Record<string, [failing: () => Promise<unknown>, cause: string]> = {
  'a missing file': [() => readFile('/nowhere/a, b'), 'no such file or directory (ENOENT)'],
  'a folder': [() => readFile('/proc'), 'illegal operation on a directory (EISDIR)'],
  'no path': [
    () => Promise.reject(Object.assign(new Error('EIO: i/o error, read'), { code: 'EIO' })),
    'i/o error (EIO)',
  ],
  'two paths': [() => rename('/nowhere/a', "/nowhere/it's"), 'no such file or directory (ENOENT)'],
  'a copy': [() => copyFile('/nowhere/a', '/nowhere/b'), 'no such file or directory (ENOENT)'],
  'a name that is there': [() => mkdir('/proc'), 'file already exists (EEXIST)'],
  'another error': [() => Promise.reject(new Error('E1: no, thanks')), 'E1: no, thanks'],
};

for (const [name, [failing, cause]] of Object.entries(cases))
  test(`the cause of a failed file operation: ${name}`, async () => {
    const error = await failing().catch((reason: unknown) => reason);
    assert.equal(fileCause(error), cause);
  });
