import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import files, { mkdir, mkdtemp, open, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, type TestContext, test } from 'node:test';
import { ExitCode, FacetrainError } from '@facetrain/api';
import { SimulatedProcess } from '../testing/file-operations.ts';
import { Fence, type Owner } from './fence.ts';

// In memory, where it can be: the last tests flush thousands of times.
const top = await mkdtemp(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'fence-'));
after(() => rm(top, { recursive: true }));
const newFolder = () => mkdtemp(join(top, 'folder-'));
let starts = 0;
const owner = (attempt: number, change: Partial<Owner> = {}): Owner => ({
  name: 'faces',
  uid: 'uid',
  attempt,
  start: `start-${starts++}`,
  ...change,
});

/** Every file below a folder, with its content. */
async function contents(folder: string): Promise<Record<string, string>> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const paths = entries.filter((entry) => entry.isFile()).map(({ parentPath, name }) => join(parentPath, name));
  return Object.fromEntries(
    await Promise.all(paths.sort().map(async (path) => [path.slice(folder.length + 1), await readFile(path, 'utf8')])),
  );
}

async function fencedOff(promise: Promise<unknown>, by: RegExp): Promise<void> {
  await assert.rejects(promise, (error) => {
    assert(error instanceof FacetrainError, String(error));
    assert.deepEqual([error.code, error.exitCode], ['FencedOff', ExitCode.fencedOff], error.message);
    assert.match(error.message, by);
    return true;
  });
}

test('the newest claim can write, delete and set aside; one fence is left', async () => {
  const folder = await newFolder();
  let fence!: Fence;
  for (const attempt of [0, 1, 1, 2]) {
    fence = await Fence.claim(folder, owner(attempt));
    await fence.write(join(folder, 'model', 'm.onnx'), `of ${fence.number}`);
    await fence.write(join(folder, 'report'), 'r');
    await fence.remove(join(folder, 'report'));
    await fence.remove(join(folder, 'report'));
    await fence.check();
  }
  await writeFile(join(folder, 'bad'), 'b');
  assert.equal(await Fence.of(folder, fence).setAside(join(folder, 'bad')), join(folder, 'damaged-bad.0000000004'));
  assert.equal(await Fence.of(folder, fence).setAside(join(folder, 'bad')), undefined);
  const { 'fences/0000000004/owner.json': claimed, ...rest } = await contents(folder);
  assert.deepEqual(rest, { 'damaged-bad.0000000004': 'b', 'model/m.onnx': 'of 4' });
  assert.deepEqual(Object.keys(JSON.parse(claimed!) as object), ['name', 'uid', 'attempt', 'start', 'time']);
});

test('a fence that a newer claim has replaced changes nothing, and names the new owner', async () => {
  const folder = await newFolder();
  const old = await Fence.claim(folder, owner(3));
  await writeFile(join(old.path, 'staged'), 'old');
  const newer = await Fence.claim(folder, owner(0, { name: 'other', uid: 'other' }));
  await newer.write(join(folder, 'file'), 'new');
  const by = /folder-.*: attempt 0 of job other \(uid other\) took it over at 2.*; one writer at a time/;
  await fencedOff(old.check(), by);
  await fencedOff(old.write(join(folder, 'file'), 'old'), by);
  await fencedOff(old.moveOut(join(old.path, 'staged'), join(folder, 'file')), by);
  await fencedOff(old.remove(join(folder, 'file')), by);
  await fencedOff(old.setAside(join(folder, 'file')), by);
  await fencedOff(Promise.reject(await old.explain(new Error('peers are gone'))), by);
  assert.equal((await contents(folder)).file, 'new');
  const error = new Error('unrelated');
  assert.equal(await newer.explain(error), error);
});

test('an older attempt of the same job is refused, whoever claimed last', async () => {
  const folder = await newFolder();
  await Fence.claim(folder, owner(5));
  await fencedOff(Fence.claim(folder, owner(4)), /attempt 5 of job faces/);
  assert.deepEqual(await readdir(join(folder, 'fences')), ['0000000001']);
  // Another job, or the same that was deleted and created again, begins with attempt 0.
  assert.equal((await Fence.claim(folder, owner(0, { uid: 'new' }))).number, 2);
});

test('a start that claims a folder by two paths has one fence', async () => {
  const folder = await newFolder();
  const one = owner(0);
  const first = await Fence.claim(folder, one);
  const second = await Fence.claim(join(folder, '..', folder.slice(top.length + 1)), one);
  assert.equal(second.number, first.number);
  await first.write(join(folder, 'a'), '');
  await second.write(join(folder, 'b'), '');
});

test('when the fences are removed, nobody writes any more', async () => {
  const folder = await newFolder();
  const fence = await Fence.claim(folder, owner(0));
  await rm(join(folder, 'fences'), { recursive: true });
  await fencedOff(
    fence.write(join(folder, 'file'), ''),
    /: the fence of this writer is gone: .* removed it from fences\/; fences\/ stays for .*; this one has stopped$/,
  );
  assert.deepEqual(await readdir(folder), []);
});

test('a fence has no power when its number comes again after the fences were removed', async () => {
  const folder = await newFolder();
  const old = await Fence.claim(folder, owner(0));
  await rm(join(folder, 'fences'), { recursive: true });
  const newer = await Fence.claim(folder, owner(1));
  assert.equal(newer.number, old.number);
  await newer.write(join(folder, 'file'), 'new');
  await fencedOff(old.check(), /attempt 1 of job faces/);
  await fencedOff(old.remove(join(folder, 'file')), /attempt 1 of job faces/);
  await fencedOff(old.write(join(folder, 'file'), 'old'), /attempt 1 of job faces/);
  assert.equal((await contents(folder)).file, 'new');
});

test('a claim that was frozen does not give an older fence its power back', async () => {
  const folder = await newFolder();
  await Fence.claim(folder, owner(0));
  // It has read which numbers are there, and makes the folder that it will rename.
  const frozen = new SimulatedProcess(
    'frozen',
    ({ name, args }) => name === 'mkdir' && /fences.\./.test(String(args[0])),
  );
  const { ended } = await frozen.run(() => Fence.claim(folder, owner(0, { uid: 'frozen' })));
  const old = await Fence.claim(folder, owner(1));
  const newer = await Fence.claim(folder, owner(2));
  await newer.write(join(folder, 'file'), 'new');
  frozen.wake();
  await fencedOff(ended, /attempt 2 of job faces/);
  // It has taken the number of the older fence again.
  assert.deepEqual((await readdir(join(folder, 'fences'))).sort(), ['0000000002', '0000000003']);
  await fencedOff(old.remove(join(folder, 'file')), /attempt 2 of job faces/);
  assert.equal((await contents(folder)).file, 'new');
});

test('a claim whose rename is reported as failed, as NFS does, removes the older fences', async () => {
  const folder = await newFolder();
  const old = await Fence.claim(folder, owner(0));
  await old.write(join(folder, 'file'), 'of both');
  const { rename } = files;
  files.rename = async (from, to) => {
    files.rename = rename;
    syncBuiltinESMExports();
    await rename(from, to);
    throw Object.assign(new Error('ENOENT: no such file or directory, rename'), { code: 'ENOENT' });
  };
  syncBuiltinESMExports();
  const newer = await Fence.claim(folder, owner(1));
  assert.deepEqual(await readdir(join(folder, 'fences')), ['0000000002']);
  await fencedOff(old.remove(join(folder, 'file')), /attempt 1 of job faces/);
  await newer.remove(join(folder, 'file'));
});

test('of many claims at the same time, one remains', async () => {
  const folder = await newFolder();
  const claims = await Promise.allSettled(
    Array.from({ length: 20 }, (_, index) => Fence.claim(folder, owner(0, { uid: `${index}` }))),
  );
  const fences = claims.flatMap((claim) => (claim.status === 'fulfilled' ? [claim.value] : []));
  for (const claim of claims)
    if (claim.status === 'rejected') await fencedOff(Promise.reject(claim.reason), /took it over/);
  assert.equal(new Set(fences.map(({ number }) => number)).size, fences.length);
  const able = await Promise.allSettled(fences.map((fence) => fence.write(join(folder, 'file'), `${fence.number}`)));
  const writers = fences.filter((_, index) => able[index]!.status === 'fulfilled');
  const newest = Math.max(...fences.map(({ number }) => number));
  assert.deepEqual(
    writers.map(({ number }) => number),
    [newest],
  );
  assert.deepEqual(await readdir(join(folder, 'fences')), [String(newest).padStart(10, '0')]);
});

/** Runs `work` in a folder on a disk of 64 KiB. */
async function onSmallDisk(t: TestContext, work: (folder: string) => Promise<void>): Promise<void> {
  const disk = await newFolder();
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', disk]);
  if (mounted.status !== 0) return t.skip(`needs the right to mount: ${mounted.stderr}`);
  try {
    await work(join(disk, 'out'));
  } finally {
    assert.equal(spawnSync('umount', [disk]).status, 0);
  }
}

/** Writes a file until the disk is full. */
async function fill(path: string): Promise<void> {
  const file = await open(path, 'w');
  const written = async () => {
    for (;;) await file.write(Buffer.alloc(4096));
  };
  await assert.rejects(written(), { code: 'ENOSPC' });
  await file.close();
}

test('a claim takes the room that it needs from what older processes left half-written', (t) =>
  onSmallDisk(t, async (folder) => {
    const old = await Fence.claim(folder, owner(1));
    await mkdir(join(old.path, 'step-0000000001'));
    await mkdir(join(old.path, 'damaged-step'));
    await fill(join(old.path, 'step-0000000001', 'rows'));
    // An older attempt is refused before that.
    await fencedOff(Fence.claim(folder, owner(0)), /attempt 1 of job faces/);
    await old.check();
    const newer = await Fence.claim(folder, owner(2));
    await newer.write(join(folder, 'file'), 'new');
    await fencedOff(old.write(join(folder, 'file'), 'old'), /attempt 2 of job faces/);
    assert.deepEqual((await readdir(folder)).sort(), ['damaged-step', 'fences', 'file']);
    assert.deepEqual(await readdir(join(folder, 'fences')), ['0000000002']);
  }));

test('a claim takes room from a claim and a removal that were killed', (t) =>
  onSmallDisk(t, async (folder) => {
    await Fence.claim(folder, owner(0));
    const killed = join(folder, 'fences', `.${randomUUID()}`);
    await mkdir(join(killed, 'start', 'damaged-step'), { recursive: true });
    await fill(join(killed, 'start', 'rows'));
    await Fence.claim(folder, owner(1));
    assert.deepEqual((await readdir(folder)).sort(), ['damaged-step', 'fences']);
    assert.deepEqual(await readdir(join(folder, 'fences')), ['0000000002']);
  }));

test('without room for a claim the error says what can be removed, and nothing complete is lost', (t) =>
  onSmallDisk(t, async (folder) => {
    const old = await Fence.claim(folder, owner(1));
    await writeFile(join(folder, 'result'), 'r');
    await writeFile(join(old.path, 'staged'), '');
    await fill(join(folder, 'result-2'));
    const claim = () => Fence.claim(folder, owner(2));
    for (let times = 0; times < 2; times++)
      await assert.rejects(claim, (error) => {
        assert(error instanceof FacetrainError, String(error));
        assert.deepEqual([error.code, error.subject], ['DiskFull', folder]);
        assert.match(
          error.message,
          /free some space .* checkpoints older than the newest, .* damaged-…, can be removed/,
        );
        return true;
      });
    assert.deepEqual((await readdir(folder)).sort(), ['fences', 'result', 'result-2']);
    await fencedOff(old.check(), /the fence of this writer is gone/);
    // The attempt that it belonged to is not forgotten.
    await fencedOff(Fence.claim(folder, owner(0)), /attempt 1 of job faces/);
    await rm(join(folder, 'result-2'));
    assert.equal((await claim()).number, 2);
  }));

test('files of the user in fences/ stay', async () => {
  const folder = await newFolder();
  await mkdir(join(folder, 'fences', '.git'), { recursive: true });
  await writeFile(join(folder, 'fences', 'README'), '');
  await Fence.claim(folder, owner(0));
  await Fence.claim(folder, owner(1));
  assert.deepEqual((await readdir(join(folder, 'fences'))).sort(), ['.git', '0000000002', 'README']);
});

/** What an attempt does to a folder: it takes it, and replaces what is there, a report last. */
async function replaceAll(folder: string, attempt: number): Promise<void> {
  const fence = await Fence.claim(folder, owner(attempt));
  await fence.remove(join(folder, 'report'));
  await fence.write(join(folder, 'model', 'm.onnx'), `model ${attempt}`);
  await fence.write(join(folder, 'checkpoint'), `checkpoint ${attempt}`);
  await fence.setAside(join(folder, 'checkpoint'));
  await fence.write(join(folder, 'report'), `report ${attempt}`);
}

test('a process that is killed at any file operation leaves no report of files that are not there', async () => {
  for (let number = 1; ; number++) {
    const folder = await newFolder();
    await replaceAll(folder, 0);
    const { reached } = await new SimulatedProcess('killed', (operation) => operation.number === number).run(() =>
      replaceAll(folder, 1),
    );
    const { report, 'model/m.onnx': model } = await contents(folder);
    assert([undefined, model!.replace('model', 'report')].includes(report), `operation ${number}: ${report}, ${model}`);
    await replaceAll(folder, 2);
    assert.equal((await contents(folder)).report, 'report 2', `operation ${number}`);
    assert.equal((await readdir(join(folder, 'fences'))).length, 1, `operation ${number}`);
    if (!reached) break;
    assert(number < 500);
  }
});

test('a process that is frozen before any of its file operations changes nothing when it wakes', async () => {
  let number = 1;
  for (; ; number++) {
    const folder = await newFolder();
    await replaceAll(folder, 0);
    const old = new SimulatedProcess('frozen', (operation) => operation.number === number);
    const { reached, ended } = await old.run(() => replaceAll(folder, 1));
    if (!reached) break;
    await replaceAll(folder, 2);
    const before = await contents(folder);
    old.wake();
    const isOver = await ended.then(
      () => true,
      () => false,
    );
    assert.deepEqual(await contents(folder), before, `operation ${number}`);
    // Frozen after its last change, it ends as if nothing had happened.
    if (isOver) break;
    await fencedOff(ended, /attempt 2 of job faces/);
    assert(number < 500);
  }
  assert(number > 20, `only ${number} operations`);
});
