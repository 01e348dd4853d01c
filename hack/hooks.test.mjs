// The hooks of a file of tests when a pattern selects tests by their names: lib/hooks.mjs.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { root } from './lib/paths.mjs';

const folder = mkdtempSync(join(tmpdir(), 'facetrain-hooks-'));
after(() => rmSync(folder, { recursive: true }));

// Its server would keep the process alive.
const SERVED = `
  import { createServer } from 'node:http';
  import { after, before, describe, test } from 'node:test';
  let server;
  before(async () => {
    console.log('starts');
    await new Promise((resolve) => (server = createServer().listen(0, '127.0.0.1', resolve)));
  });
  after(() => server.close(() => console.log('has stopped')));
  after(() => console.log('second after'));
  test('one', () => console.log(server.listening ? 'runs' : 'runs too early'));
  describe('a suite', () => {
    test('two', () => console.log(server.listening ? 'runs' : 'runs too early'));
  });
`;
/** What is made while the file is read is removed whatever runs. */
const READ = `
  import { after, test } from 'node:test';
  after(() => console.log('removed'));
  test('one', () => {});
`;

/** @returns the lines that a file of tests prints itself, when the pattern selects its tests */
function printed(name, source, pattern) {
  const file = join(folder, name);
  writeFileSync(file, source);
  const hooks = join(root, 'hack', 'lib', 'hooks.mjs');
  // The runner of this file would take its tests for its own.
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const output = execFileSync(
    process.execPath,
    ['--test', '--test-reporter=tap', `--test-name-pattern=${pattern}`, `--import=${hooks}`, file],
    { encoding: 'utf8', env, stdio: ['ignore', 'pipe', 'inherit'] },
  );
  return [...output.matchAll(/^# (starts|runs.*|has stopped|second after|removed)$/gm)].map(([, line]) => line);
}

test('hooks run around the tests that are selected', () => {
  const want = ['starts', 'runs', 'second after', 'has stopped'];
  for (const pattern of ['one', 'two'])
    assert.deepEqual(printed('served.test.mjs', SERVED, pattern).sort(), want.sort());
});

test('where no test is selected, nothing is started, and nothing fails', () => {
  assert.deepEqual(printed('served.test.mjs', SERVED, 'three'), []);
});

test('what was made while the file was read is removed', () => {
  assert.deepEqual(printed('read.test.mjs', READ, 'three'), ['removed']);
});
