/** The program around its modes: configuration, ranks, progress server, exit codes. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { availableParallelism, networkInterfaces, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import {
  FacetrainError,
  MAX_TERMINATION_BYTES,
  PROGRESS_HOST,
  Progress,
  TerminationMessage,
  TerminationResult,
  TrainerConfig,
} from '@facetrain/api';
import { pino } from 'pino';
import { trainerConfig } from '../testing/training-gang.ts';
import { createBoard } from './progress-board.ts';
import { startServer } from './progress-server.ts';
import { computeThreads, readRanks } from './ranks.ts';
import { readConfig } from './read-config.ts';
import { reportFailure, reportResult } from './report-termination.ts';
import { abortable, isStop } from './stop-signal.ts';

const folder = await mkdtemp(join(tmpdir(), 'program-'));
after(() => rm(folder, { recursive: true }));
const MAIN = join(import.meta.dirname, '..', 'main.ts');
const job = { name: 'job', uid: 'u', attempt: 2 };

async function refusal(promise: Promise<unknown> | (() => unknown)): Promise<FacetrainError> {
  try {
    await (typeof promise === 'function' ? promise() : promise);
  } catch (error) {
    assert(error instanceof FacetrainError, String(error));
    return error;
  }
  return assert.fail('not refused');
}

test('a refused configuration names the field’s path, the value found and what is allowed', async () => {
  const good = trainerConfig(folder);
  const path = join(folder, 'config.json');
  const read = async (content: unknown) => {
    await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content));
    return readConfig(path, TrainerConfig);
  };
  assert.deepEqual(await read(good), good);
  const cases: [unknown, RegExp][] = [
    ['{"schemaVersion": 1,', /config.json: .*JSON/],
    [
      { ...good, epoch: 3 },
      /config.json: epoch: unknown field; did you mean "epochs".*\nThis image is older .* an image of the same release/,
    ],
    [
      { ...good, loss: { ...good.loss, margin: { ...good.loss.margin, m2: 9 } } },
      /config.json: loss\.margin\.m2: 9; must be at most 1\.5/,
    ],
    [
      { ...good, model: { ...good.model, backbone: 'resnet' } },
      /config.json: model\.backbone: "resnet"; must be one of iresnet18/,
    ],
    [
      { ...good, model: { ...good.model, blocks: [1, 1, 0, 1] } },
      /config.json: model\.blocks\[2\]: 0; must be at least 1/,
    ],
    [
      { ...good, seed: undefined, epochs: -1 },
      /config.json: 2 fields are wrong; .*\n {2}epochs: -1; must be at least 1\n {2}seed: missing/,
    ],
    [7, /config.json: 7; must be an object/],
    [
      { ...good, schemaVersion: 2 },
      /config.json: schemaVersion: 2; must be one of 1\n.* of another release than this image: use an image of/,
    ],
  ];
  for (const [content, message] of cases) {
    const error = await refusal(read(content));
    assert.match(error.message, message);
    assert.deepEqual([error.code, error.exitCode], ['InvalidConfig', 2]);
  }
  assert.match((await refusal(readConfig(undefined, TrainerConfig))).message, /FACETRAIN_CONFIG: not set/);
  assert.match((await refusal(readConfig(join(folder, 'none.json'), TrainerConfig))).message, /none.json: .*ENOENT/);
});

test('progress has all that an operator of release 0.1 reads, of the same types', async () => {
  const fixture = join(import.meta.dirname, '..', '..', '..', 'api', 'src', 'testing', 'release-0.1.json');
  const { training } = JSON.parse(await readFile(fixture, 'utf8')) as {
    training: { progress: Record<string, unknown> };
  };
  const { current } = createBoard(job, 'Training');
  const typeOf = (value: unknown) => (Array.isArray(value) ? 'array' : typeof value);
  const known = current as unknown as Record<string, unknown>;
  for (const [field, value] of Object.entries(training.progress)) {
    if (value === null) continue;
    assert(field in known, field);
    assert(known[field] === null || typeOf(known[field]) === typeOf(value), field);
  }
  assert.equal(current.schemaVersion, training.progress.schemaVersion);
});

test('ranks from torchrun’s environment variables', async () => {
  assert.deepEqual(readRanks({}), {
    rank: 0,
    size: 1,
    masterAddr: '127.0.0.1',
    masterPort: 0,
    localRank: 0,
    localSize: 1,
  });
  const env = { RANK: '1', WORLD_SIZE: '4', MASTER_ADDR: 'job-0-0.job', MASTER_PORT: '29500' };
  assert.deepEqual(readRanks(env), {
    rank: 1,
    size: 4,
    masterAddr: 'job-0-0.job',
    masterPort: 29500,
    localRank: 0,
    localSize: 1,
  });
  const local = (more: Record<string, string>) =>
    (({ localRank, localSize }) => [localRank, localSize])(readRanks({ ...env, ...more }));
  assert.deepEqual(local({ LOCAL_RANK: '0' }), [0, 1]);
  assert.deepEqual(local({ LOCAL_WORLD_SIZE: '2', RANK: '3' }), [1, 2]);
  assert.deepEqual(local({ LOCAL_WORLD_SIZE: '2', LOCAL_RANK: '0', RANK: '3' }), [0, 2]);
  assert.deepEqual(local({ MASTER_ADDR: '127.0.0.1', RANK: '3' }), [3, 4]);
  const cases: [Record<string, string | undefined>, RegExp][] = [
    [{ ...env, RANK: '4' }, /RANK: "4"; an integer from 0 to 3/],
    [{ ...env, RANK: undefined }, /RANK: not set/],
    [{ ...env, WORLD_SIZE: undefined }, /WORLD_SIZE: not set/],
    [{ ...env, WORLD_SIZE: '2x' }, /WORLD_SIZE: "2x"/],
    [{ ...env, LOCAL_RANK: '4' }, /LOCAL_RANK: "4"; an integer from 0 to 3/],
    [{ ...env, MASTER_ADDR: undefined }, /MASTER_ADDR: not set/],
    [{ ...env, MASTER_PORT: '0' }, /MASTER_PORT: "0"; an integer from 1 to 65535/],
  ];
  for (const [variables, message] of cases) assert.match((await refusal(() => readRanks(variables))).message, message);
  assert.equal(computeThreads(3, readRanks({})), 3);
  assert.equal(computeThreads(null, readRanks({})), availableParallelism());
  assert.equal(computeThreads(null, { ...readRanks({}), localSize: 1000 }), 1);
});

test('the server returns the board as JSON and as metrics, and its health follows the activity', async () => {
  let now = 0;
  const board = createBoard(job, 'Preflight', () => now);
  const server = await startServer(board, { host: '127.0.0.1', port: 0, staleAfterSeconds: 10 });
  after(() => server.close());
  const get = (path: string, init?: RequestInit) => fetch(`http://127.0.0.1:${server.port}${path}`, init);
  const progress = async () => Progress.parse(await (await get('/v1/progress')).json());

  const before = await progress();
  assert.equal(before.stage, 'Preflight');
  assert.doesNotMatch(await (await get('/metrics')).text(), /^facetrain_loss /m, 'an unknown value is absent');
  board.update({
    stage: 'Training',
    step: 3,
    totalSteps: 10,
    loss: 1.5,
    evaluations: [{ set: 'lfw', step: 3, accuracy: 0.75 }],
    checkpoint: { step: 2, time: '1970-01-01T00:01:00.000Z' },
    checkpoints: { count: 2, stallSeconds: 0.5, whileTrainingWaited: 0 },
  });
  board.tick();
  assert.doesNotMatch(await (await get('/metrics')).text(), /^facetrain_step_stage_seconds_total\{/m, 'no step yet');
  const stages = { data: 0.5, upload: 0, forward: 1, head: 2, backward: 3, communication: 0, update: 0.25 };
  board.addStep(stages);
  board.addStep({ ...stages, data: 1 });
  const current = await progress();
  assert.deepEqual(current, board.current);
  assert.equal(current.activity, before.activity + 2);
  const metrics = await (await get('/metrics')).text();
  for (const line of [
    'facetrain_step 3',
    'facetrain_planned_steps 10',
    'facetrain_loss 1.5',
    'facetrain_step_stage_seconds_total{stage="data"} 1.5',
    'facetrain_step_stage_seconds_total{stage="backward"} 6',
    'facetrain_step_stage_seconds_total{stage="communication"} 0',
    'facetrain_stage{stage="Training"} 1',
    'facetrain_stage{stage="Preflight"} 0',
    'facetrain_verification_accuracy_ratio{set="lfw"} 0.75',
    'facetrain_checkpoint_timestamp_seconds 60',
    'facetrain_checkpoint_stall_seconds 0.5',
    'facetrain_checkpoints_written 2',
    `facetrain_activity_total ${current.activity}`,
    'facetrain_info{name="job",uid="u",attempt="2"} 1',
  ])
    assert(metrics.split('\n').includes(line), `${line} is missing`);
  board.update({ loss: null });
  assert.doesNotMatch(await (await get('/metrics')).text(), /^facetrain_loss /m);

  now = 9_999;
  assert.equal((await get('/healthz')).status, 200);
  now = 10_000;
  const sick = await get('/healthz');
  assert.deepEqual([sick.status, await sick.text()], [503, 'stale: Training, last activity 10 s ago\n']);
  board.tick();
  assert.equal((await get('/healthz')).status, 200);

  assert.equal((await get('/nothing')).status, 404);
  assert.equal((await get('/toString')).status, 404);
  assert.equal((await get('/healthz', { method: 'POST' })).status, 405);
  assert.match(
    (await refusal(startServer(board, { host: '127.0.0.1', port: server.port, staleAfterSeconds: 1 }))).message,
    /progress: cannot listen on 127\.0\.0\.1:\d+/,
  );
});

test('in a pod the server answers IPv4 and IPv6', async (t) => {
  const board = createBoard(job, 'Preflight');
  const server = await startServer(board, { host: PROGRESS_HOST, port: 0, staleAfterSeconds: 10 });
  after(() => server.close());
  const hasIpv6 = Object.values(networkInterfaces()).some((addresses) =>
    addresses?.some(({ address }) => address === '::1'),
  );
  if (!hasIpv6) t.diagnostic('::1 is not tested: this machine has no such address');
  for (const address of ['127.0.0.1', ...(hasIpv6 ? ['[::1]'] : [])])
    assert.equal((await fetch(`http://${address}:${server.port}/healthz`)).status, 200, address);
});

test('a stop ends waiting, and only errors that it caused count as a stop', async () => {
  const controller = new AbortController();
  const { signal } = controller;
  assert.equal(await abortable(signal, Promise.resolve(1)), 1);
  await assert.rejects(abortable(signal, Promise.reject(new Error('own'))), /own/);
  const waiting = abortable(signal, new Promise(() => {}));
  assert.equal(isStop(new DOMException('', 'AbortError'), signal), false);
  controller.abort('SIGTERM');
  const error: unknown = await waiting.catch((error: unknown) => error);
  assert(isStop(error, signal));
  assert(isStop('SIGTERM', signal));
  assert.equal(isStop(new Error('defect'), signal), false);
  await assert.rejects(abortable(signal, new Promise(() => {})), /stopped by SIGTERM/);
});

function run(args: string[], env: Record<string, string> = {}) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [MAIN, ...args], {
    env: { ...process.env, ...env },
    encoding: 'utf8',
    timeout: 120_000,
  });
  return {
    status,
    stdout,
    log: stderr
      .trim()
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line) as Record<string, unknown>),
  };
}

test('a refusal is one line in the log, exit code 2 and the termination message', async () => {
  const message = join(folder, 'termination.json');
  const config = join(folder, 'unknown.json');
  await writeFile(config, JSON.stringify({ ...trainerConfig(folder), surprise: 1 }));
  const { status, stdout, log } = run(['train'], { FACETRAIN_CONFIG: config, FACETRAIN_TERMINATION_MESSAGE: message });
  assert.equal(status, 2);
  assert.equal(stdout, '');
  assert.equal(log.length, 1);
  const left = TerminationMessage.parse(JSON.parse(await readFile(message, 'utf8')));
  assert.equal(left.code, 'InvalidConfig');
  assert.match(left.message, /unknown\.json: surprise: unknown field/);
  assert.equal(log[0]!.msg, left.message);
});

test('memory that JavaScript does not get is InsufficientMemory', async () => {
  const file = join(folder, 'memory.json');
  process.env.FACETRAIN_TERMINATION_MESSAGE = file;
  for (const allocate of [() => new ArrayBuffer(2 ** 52), () => new Uint8Array(2 ** 52)]) {
    let code: number | undefined;
    try {
      allocate();
    } catch (error) {
      code = reportFailure(error, pino({ level: 'silent' }));
    }
    assert.equal(code, 2);
    const left = TerminationMessage.parse(JSON.parse(await readFile(file, 'utf8')));
    assert.equal(left.code, 'InsufficientMemory');
    assert.match(left.message, /; \d+ bytes are available; more memory/);
  }
});

test('the memory that is available is what the container or the machine has, whichever is less', async (t) => {
  const file = join(folder, 'available.json');
  process.env.FACETRAIN_TERMINATION_MESSAGE = file;
  const available = async (inContainer: number) => {
    t.mock.method(process, 'availableMemory', () => inContainer);
    reportFailure(new RangeError('Array buffer allocation failed'), pino({ level: 'silent' }));
    const { message } = TerminationMessage.parse(JSON.parse(await readFile(file, 'utf8')));
    return Number(/; (\d+) bytes are available/.exec(message)![1]);
  };
  assert.equal(await available(4096), 4096);
  const ofMachine = await available(2 ** 52);
  assert(ofMachine > 0 && ofMachine <= totalmem(), `${ofMachine}`);
});

test('a termination message is never longer than the kubelet reads', async () => {
  const file = join(folder, 'long.json');
  process.env.FACETRAIN_TERMINATION_MESSAGE = file;
  const log = pino({ level: 'silent' });
  for (const character of ['a', '"', '\u0001', '\u{1F600}']) {
    reportFailure(new Error(character.repeat(5000)), log);
    const left = await readFile(file);
    assert(
      left.length <= MAX_TERMINATION_BYTES && left.length > MAX_TERMINATION_BYTES / 2,
      `${left.length} bytes of ${character}`,
    );
    assert.equal(TerminationMessage.parse(JSON.parse(left.toString())).code, 'Internal');
  }
  const { current } = createBoard(job, 'Done');
  const evaluations = (count: number) =>
    Array.from({ length: count }, (_, index) => ({
      set: `${index}`.padEnd(63, 'x'),
      step: 1,
      accuracy: 1 / 3,
      std: 1 / 70,
    }));
  for (const [count, wantCount] of [
    [3, 3],
    [32, 0],
  ] as const) {
    reportResult({ progress: { ...current, evaluations: evaluations(count) } }, log);
    const left = await readFile(file);
    assert(left.length <= MAX_TERMINATION_BYTES);
    assert.deepEqual(TerminationResult.parse(JSON.parse(left.toString())).progress, {
      ...current,
      evaluations: evaluations(wantCount),
    });
  }
  delete process.env.FACETRAIN_TERMINATION_MESSAGE;
});

test('command lines that are not understood', () => {
  for (const [args, message] of [
    [[], /no mode: not understood; train, quantize, fetch, hold-place or serve/],
    [['dance'], /dance: not understood/],
    [['train', '--fast'], /train: --fast; --ranks and how many/],
    [['train', '--ranks'], /train: --ranks; --ranks and how many/],
    [['train', '--ranks', '0'], /--ranks 0;/],
    [['train', '--ranks', '2', '3'], /--ranks 2 3;/],
    [['quantize', '--fast'], /--fast: not understood; no arguments after quantize/],
    [['fetch', '--uri', 'file:///x'], /fetch: without --to/],
    [['fetch', '--force'], /fetch: .*--force/],
  ] as const) {
    const { status, log } = run([...args]);
    assert.equal(status, 2);
    assert.match(String(log[0]?.msg), message);
  }
  const help = run(['--help']);
  assert.equal(help.status, 0);
  assert.match(help.stdout, /^Usage: facetrain-trainer/);
});

test('hold-place waits for SIGTERM, and then has succeeded', async (t) => {
  const holder = spawn(process.execPath, [MAIN, 'hold-place'], { stdio: ['ignore', 'ignore', 'pipe'] });
  t.after(() => holder.kill('SIGKILL'));
  const exited = once(holder, 'exit');
  const [line] = (await once(holder.stderr, 'data')) as [Buffer];
  assert.match(line.toString(), /holding the place of a trainer/);
  assert.equal(holder.exitCode, null);
  holder.kill('SIGTERM');
  assert.deepEqual(await exited, [0, null]);
});

test('fetch copies a file; one that is missing is refused', async () => {
  await writeFile(join(folder, 'source'), 'content');
  assert.equal(run(['fetch', '--uri', `file://${folder}/source`, '--to', join(folder, 'copy')]).status, 0);
  assert.equal(await readFile(join(folder, 'copy'), 'utf8'), 'content');
  const { status, log } = run(['fetch', '--uri', `file://${folder}/missing`, '--to', join(folder, 'copy2')]);
  assert.equal(status, 2);
  assert.match(String(log[0]?.msg), /missing/);
});

test('fetch copies several files, until one is missing', async () => {
  for (const name of ['first', 'second', 'third']) await writeFile(join(folder, name), name);
  const request = (name: string) => ['--uri', `file://${folder}/${name}`, '--to', join(folder, `copy of ${name}`)];
  const fetch = (...names: string[]) =>
    run(['fetch', ...names.flatMap((name, index) => [...(index > 0 ? ['--and'] : []), ...request(name)])]);
  assert.equal(fetch('first', 'second').status, 0);
  for (const name of ['first', 'second']) assert.equal(await readFile(join(folder, `copy of ${name}`), 'utf8'), name);
  const { status, log } = fetch('nothing', 'third');
  assert.equal(status, 2);
  assert.match(String(log[0]?.msg), /nothing/);
  assert(!existsSync(join(folder, 'copy of third')));
  assert.equal(run(['fetch', ...request('first'), '--and']).status, 2);
});

test('serves files of a folder to who knows the token, from any position, and nothing beside them', async (t) => {
  const root = join(folder, 'served');
  await mkdir(join(root, 'a'), { recursive: true });
  await writeFile(join(root, 'a', 'b c'), '0123456789');
  await writeFile(join(folder, 'beside'), 'secret');
  await symlink(join(folder, 'beside'), join(root, 'link'));
  const child = spawn(process.execPath, [MAIN, 'serve', '--folder', root, '--port', '0'], {
    env: { ...process.env, FACETRAIN_SERVE_TOKEN: 'word' },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  t.after(() => void child.kill('SIGKILL'));
  const port = await new Promise<string>((resolve, reject) => {
    let log = '';
    child.stderr.on('data', (part) => {
      log += String(part);
      const found = /"port":(\d+)/.exec(log);
      if (found) resolve(found[1]!);
    });
    child.once('exit', () => reject(new Error(log)));
  });
  const base = `http://127.0.0.1:${port}`;
  const get = async (path: string) => {
    const answer = await fetch(base + path);
    return [answer.status, await answer.text()];
  };
  assert.deepEqual(await get('/word/files/a/b%20c'), [200, '0123456789']);
  assert.deepEqual(await get('/word/files/a/b%20c?from=7'), [200, '789']);
  assert.deepEqual(await get('/word/files/a/b%20c?from=10'), [200, '']);
  assert.deepEqual(await get('/word/list'), [200, '["a","link"]']);
  for (const path of ['/list', '/wrong/list', '/word/files/x', '/word/files/a', '/word/files/link'])
    assert.deepEqual(await get(path), [404, ''], path);
  assert.deepEqual(await get('/word/files/..%2Fbeside'), [404, '']);
  child.kill('SIGTERM');
  assert.deepEqual(await once(child, 'exit'), [0, null]);
});

test('serve without folder, port or token is refused', () => {
  const { status, stderr } = spawnSync(process.execPath, [MAIN, 'serve', '--folder', folder], { encoding: 'utf8' });
  assert.equal(status, 2);
  assert.match(stderr, /--folder PATH, --port NUMBER and FACETRAIN_SERVE_TOKEN/);
});
