/** The archive and the manifest that krew installs from. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readdir, readFile, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { promisify } from 'node:util';
import { parse } from 'yaml';

const scratch = await mkdtemp(join(tmpdir(), 'facetrain-krew-test-'));
after(() => rm(scratch, { recursive: true, force: true }));

const run = promisify(execFile);
const pack = (out, ...options) =>
  run(process.execPath, [join(import.meta.dirname, 'pack-krew.mjs'), '--out', out, ...options]);
/** Exits with 0 if all modules, and what they import, are there. */
const IMPORT_ALL = 'for (const file of process.argv.slice(1)) await import(file)';

test('the plugin runs as krew links it, without anything beside it, and the manifest has its digest', async () => {
  const address = 'https://example.com/facetrain.tar.gz';
  await pack(scratch, '--address', address);
  const archive = await readFile(join(scratch, 'facetrain.tar.gz'));
  const { spec } = parse(await readFile(join(scratch, 'facetrain.yaml'), 'utf8'));
  assert.match(spec.version, /^v\d+\.\d+\.\d+$/);
  for (const { uri, sha256, bin } of spec.platforms) {
    assert.equal(uri, address);
    assert.equal(sha256, createHash('sha256').update(archive).digest('hex'));
    assert.equal(bin, 'bin/kubectl-facetrain.js');
  }
  const store = join(scratch, 'store');
  await mkdir(store);
  await run('tar', ['-xzf', join(scratch, 'facetrain.tar.gz'), '-C', store]);
  const link = join(scratch, 'kubectl-facetrain');
  await symlink(join(store, 'bin', 'kubectl-facetrain.js'), link);
  const { version } = JSON.parse(await readFile(join(import.meta.dirname, 'package.json'), 'utf8'));
  assert.equal((await run(link, ['--version'])).stdout.trim(), version);
  // What a command imports when it runs is complete, too.
  const chunks = (await readdir(join(store, 'bin'))).filter((name) => name !== 'kubectl-facetrain.js');
  assert(chunks.some((name) => name.startsWith('fetch-')));
  await run(process.execPath, [
    '--input-type=module',
    '-e',
    IMPORT_ALL,
    ...chunks.map((name) => join(store, 'bin', name)),
  ]);

  const again = join(scratch, 'again');
  await pack(again);
  assert.deepEqual(await readFile(join(again, 'facetrain.tar.gz')), archive);
});
