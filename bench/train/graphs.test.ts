/** The graphs that train_bench reads on machines without Node are those of the built-in backbones. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { BackboneOptions } from '@facetrain/trainer/backbones/backbone';
import { dumpGraph } from './dump-graph.ts';

const folder = join(import.meta.dirname, 'graphs');

for (const file of readdirSync(folder)) {
  const backbone = file.replace(/\.graph$/, '') as BackboneOptions['backbone'];
  test(`${file} is what dump-graph.ts writes`, () => {
    assert.equal(readFileSync(join(folder, file), 'utf8'), dumpGraph(backbone));
  });
}
