import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { sources } from './lib/clang-tidy.mjs';

test('a file is checked again when a header changes that it includes through another', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-clang-tidy-'));
  t.after(() => rm(folder, { recursive: true }));
  const write = (name, text) => writeFile(join(folder, name), text);
  await write('a.cc', '#include "b.h"\n#include <vector>');
  await write('b.h', '#pragma once\n#include "c.h"\n#include "b.h"');
  await write('c.h', 'int c();');
  await write('d.h', 'int d();');
  const before = sources(join(folder, 'a.cc'));
  await write('d.h', 'long d();');
  assert.deepEqual(sources(join(folder, 'a.cc')), before);
  await write('c.h', 'long c();');
  assert.notDeepEqual(sources(join(folder, 'a.cc')), before);
});
