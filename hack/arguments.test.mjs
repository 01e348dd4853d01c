import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { root } from './lib/paths.mjs';

const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
const files = [...new Set(Object.values(scripts).map((script) => script.split(' ')[1]))];

const cache = mkdtempSync(join(tmpdir(), 'arguments-'));
after(() => rmSync(cache, { recursive: true }));

/** Runs a script where it finds no other program, and nothing that was set up. */
function start(file, argument) {
  const env = { PATH: '', FACETRAIN_CACHE: cache };
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(root, file), argument], {
    env,
    encoding: 'utf8',
    timeout: 60_000,
  });
  return { status, stdout, stderr };
}

for (const file of files) {
  test(`${file} --help prints the usage and does nothing`, () => {
    for (const argument of ['--help', '-h']) {
      const { status, stdout, stderr } = start(file, argument);
      assert.match(stdout, /^Usage: npm (run )?[a-z]+ /);
      assert.deepEqual([status, stderr, readdirSync(cache)], [0, '', []]);
    }
  });
}

// The others pass their options to another program.
for (const file of ['hack/build.mjs', 'hack/setup.mjs', 'hack/test.mjs', 'hack/lint.mjs', 'install/generate.mjs']) {
  test(`${file} refuses an option that it does not have, before any work`, () => {
    const { status, stdout, stderr } = start(file, '--cdua');
    assert.match(stderr, /^\nUnknown option '--cdua'.*\n\nUsage: npm /s);
    assert.deepEqual([status, stdout, readdirSync(cache)], [1, '', []]);
  });
}
