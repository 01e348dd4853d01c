import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';

const scratch = mkdtempSync(join(tmpdir(), 'addon-'));
after(() => rmSync(scratch, { recursive: true }));

test('exitNow ends a process whose storage hangs, with its exit code', () => {
  const fifo = join(scratch, 'fifo');
  execFileSync('mkfifo', [fifo]);
  const program = join(import.meta.dirname, 'testing', 'exit-during-hang.ts');
  // process.exit() alone would wait without end.
  const { status, signal, stderr } = spawnSync(process.execPath, [program, fifo], {
    timeout: 60_000,
    killSignal: 'SIGKILL',
    encoding: 'utf8',
  });
  assert.deepEqual([status, signal], [3, null], stderr);
});
