/** The journal of a search in a folder of this machine: what a next quantizer reads, and storage that fails. */
import assert from 'node:assert/strict';
import files, { appendFile, mkdtemp, rm } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, type TestContext, test } from 'node:test';
import { SEARCH_JOURNAL } from '@facetrain/api';
import type { LayerGraph, Pictures } from '@facetrain/native';
import { pino } from 'pino';
import { digestBytes } from '../storage/digest.ts';
import { Fence } from '../storage/fence.ts';
import { SimulatedProcess } from '../testing/file-operations.ts';
import { SearchJournal, searchKey } from './search-journal.ts';

let folder: string;
let warnings: string[];
const log = pino(
  { level: 'warn' },
  { write: (line: string) => warnings.push((JSON.parse(line) as { msg: string }).msg) },
);
const claim = (start: string) => Fence.claim(folder, { name: 'job', uid: 'uid', attempt: 0, start });

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'facetrain-journal-'));
  warnings = [];
});
afterEach(() => rm(folder, { recursive: true }));

/** What a next quantizer goes on with. */
async function decided(key = 'key'): Promise<number[][]> {
  const journal = await SearchJournal.open(await claim('next'), key, log);
  await journal.close();
  return journal.decided.map((numbers) => Array.from(numbers));
}

let starts = 0;

async function written(...decisions: number[][]): Promise<void> {
  const journal = await SearchJournal.open(await claim(`start ${++starts}`), 'key', log);
  for (const numbers of decisions) journal.add([Float64Array.from(numbers)]);
  await journal.close();
}

/** Lets the first call of an operation fail for lack of room, on the file that the next journal opens. */
function withoutRoom(t: TestContext, operation: 'appendFile' | 'close'): void {
  const { open } = files;
  const mock = t.mock.method(files, 'open', async (...args: Parameters<typeof open>) => {
    const file = await open(...args);
    if (args[1] !== 'a') return file;
    const original = file[operation].bind(file) as () => Promise<void>;
    file[operation] = async () => {
      file[operation] = original;
      if (operation === 'close') await original();
      throw new Error('ENOSPC: no space left on device');
    };
    return file;
  });
  syncBuiltinESMExports();
  t.after(() => {
    mock.mock.restore();
    syncBuiltinESMExports();
  });
}

test('the key is that of graph, pictures, options and software', () => {
  const fc = (value: number, name = 'fc'): LayerGraph => ({
    input: { name: 'data', channels: 1, height: 1, width: 1 },
    layers: [
      {
        ...{ kind: 'fc', name, input: 'data', output: 'embedding' },
        weight: { dims: [1, 1], data: Float32Array.of(value) },
        bias: Float32Array.of(0),
      },
    ],
    output: { name: 'embedding', dim: 1 },
  });
  const of = (pixel: number): Pictures => ({
    ...{ data: Uint8Array.of(pixel), count: 1, height: 1, width: 1, channelOrder: 'rgb' },
  });
  const search = { ...{ rounds: 1, candidates: 2, lower: 0.5, upper: 2, strict: false }, zeroPoints: true };
  const options = { ...search, equalize: true, biasCorrection: true, budget: 0 };
  const keyOf = (graph: LayerGraph, pictures: Pictures, search: typeof options, software: string) =>
    searchKey(graph, pictures, digestBytes(pictures.data).sha256, search, software);
  const keys = [
    keyOf(fc(1), of(2), options, 'a'),
    keyOf(fc(1.5), of(2), options, 'a'),
    keyOf(fc(1, 'other'), of(2), options, 'a'),
    keyOf(fc(1), of(3), options, 'a'),
    keyOf(fc(1), of(2), { ...options, zeroPoints: false }, 'a'),
    keyOf(fc(1), of(2), { ...options, budget: 0.5 }, 'a'),
    keyOf(fc(1), of(2), options, 'b'),
  ];
  assert.equal(new Set(keys).size, keys.length);
  assert.equal(keyOf(fc(1), of(2), options, 'a'), keys[0]);
});

test('whole lines are read, up to the first that is none, and only of the same search', async () => {
  await written([0.1, -3], [1e-300]);
  assert.deepEqual(await decided(), [[0.1, -3], [1e-300]]);
  await appendFile(join(folder, SEARCH_JOURNAL), '[5]\n[6,\n[7]\n');
  assert.deepEqual(await decided(), [[0.1, -3], [1e-300], [5]]);
  await appendFile(join(folder, SEARCH_JOURNAL), '[8');
  assert.deepEqual(await decided(), [[0.1, -3], [1e-300], [5]]);
  assert.deepEqual(await decided('other'), []);
  assert.deepEqual(warnings, []);
});

test('nothing is written behind a decision that could not be written', async (t) => {
  withoutRoom(t, 'appendFile');
  await written([1], [2], [3]);
  assert.deepEqual(await decided(), []);
  assert.deepEqual(warnings, ['the search cannot be kept: ENOSPC: no space left on device']);
});

test('a search does not fail with a file that cannot be closed', async (t) => {
  withoutRoom(t, 'close');
  await written([1]);
  assert.deepEqual(warnings, ['the search cannot be kept: ENOSPC: no space left on device']);
});

test('an older quantizer does not write into the file of a newer one', async () => {
  const old = new SimulatedProcess('frozen', ({ name, args }) => name === 'open' && args[1] === 'a');
  const { reached, ended } = await old.run(() => written([1]));
  assert(reached);
  await written([2]);
  old.wake();
  await assert.rejects(ended, { code: 'FencedOff' });
  assert.deepEqual(await decided(), [[2]]);
});
