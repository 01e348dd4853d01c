import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, mock, test } from 'node:test';
import { ExitCode, FacetrainError, type TrainerConfig } from '@facetrain/api';
import { pino } from 'pino';
import { Fence } from '../storage/fence.ts';
import { trainerConfig, until } from '../testing/training-gang.ts';
import { JobFolders } from './job-folders.ts';

const top = await mkdtemp(join(tmpdir(), 'folders-'));
after(() => rm(top, { recursive: true }));
afterEach(() => mock.timers.reset());

const lost = (folders: JobFolders): FacetrainError | undefined => {
  try {
    folders.throwIfLost();
    return undefined;
  } catch (error) {
    return error as FacetrainError;
  }
};

for (const claimed of ['checkpoint folder', 'output folder'])
  test(`a training between two checkpoints ends when another job takes its ${claimed}`, async () => {
    mock.timers.enable({ apis: ['setInterval'] });
    const config = trainerConfig(await mkdtemp(join(top, 'job-')));
    const folders = new JobFolders(config, { log: pino({ level: 'silent' }) });
    await folders.claim();
    mock.timers.tick(30_000);
    assert.equal(lost(folders), undefined);

    const other = { name: 'other', uid: 'other', attempt: 0, start: 'other' };
    await Fence.claim(claimed === 'output folder' ? config.outputDirectory : config.checkpoint.directory, other);
    const error = await until(() => {
      mock.timers.tick(30_000);
      return lost(folders);
    });
    assert.equal(error.code, 'FencedOff');
    assert.match(error.message, /job other/);
    folders.close();
  });

const foldersOf = (config: TrainerConfig) => new JobFolders(config, { log: pino({ level: 'silent' }) });

/** Two ranks share their folders, in a gang without trainers. */
async function shareIn(ranks: JobFolders[]): Promise<PromiseSettledResult<void>[]> {
  await ranks[0]!.claim();
  let waiting = Promise.withResolvers<Float32Array[]>();
  let parts: Float32Array[] = [];
  const sessionOf = (rank: number) => ({
    allGather: (values: Float32Array) => {
      parts[rank] = values;
      const { promise } = waiting;
      if (Object.keys(parts).length === ranks.length) {
        waiting.resolve(parts);
        waiting = Promise.withResolvers();
        parts = [];
      }
      return promise;
    },
  });
  return Promise.allSettled(ranks.map((folders, rank) => folders.share(sessionOf(rank), 0)));
}

/** Two ranks, each with the folders of its own configuration. @returns their errors */
async function share(configs: [TrainerConfig, TrainerConfig]): Promise<unknown[]> {
  const ranks = configs.map(foldersOf);
  const ends = await shareIn(ranks);
  const errors = ends.map((end, rank) => (end.status === 'rejected' ? ranks[rank]!.explain(end.reason) : undefined));
  for (const folders of ranks) folders.close();
  return Promise.all(errors);
}

test('ranks whose folders of checkpoints are not one folder are refused before they train', async () => {
  const folder = await mkdtemp(join(top, 'job-'));
  const [first, second] = [trainerConfig(folder), trainerConfig(await mkdtemp(join(top, 'job-')))];
  assert.deepEqual(await share([first, first]), [undefined, undefined]);
  for (const claimedBefore of [false, true]) {
    if (claimedBefore) await share([second, second]);
    const errors = (await share([first, second])) as FacetrainError[];
    for (const [rank, error] of errors.entries()) {
      assert.deepEqual([error.code, error.exitCode], ['StorageFailed', ExitCode.refused], `rank ${rank}: ${error}`);
      assert.match(error.message, /rank 1 of 2 does not find there what rank 0 has written; one folder for all ranks/);
    }
  }
});

test('one folder for checkpoints and output is claimed once', async () => {
  const folder = await mkdtemp(join(top, 'job-'));
  const base = trainerConfig(folder);
  const config = { ...base, outputDirectory: folder, checkpoint: { ...base.checkpoint, directory: `${folder}/.` } };
  const folders = new JobFolders(config, { log: pino({ level: 'silent' }) });
  await folders.claim();
  const file = await folders.checkpoints().create(1, 'a');
  await file.finish();
  await folders.output.write('b', '');
  folders.close();
});

test('a rank has lost a peer when rank 0 is started again in its attempt; a newer attempt fences it off', async () => {
  const config = trainerConfig(await mkdtemp(join(top, 'job-')));
  const [first, second, startedAgain, next] = [
    config,
    config,
    config,
    { ...config, job: { ...config.job, attempt: 1 } },
  ].map(foldersOf) as [JobFolders, JobFolders, JobFolders, JobFolders];
  await shareIn([first, second]);
  const failure = new Error('the storage has failed');
  const lostPeer = new FacetrainError({ code: 'PeerLost', subject: 'rank 0', found: 'gone', allowed: 'present' });
  const codesOf = async (folders: JobFolders, error: Error) => {
    const { code, exitCode } = (await folders.explain(error)) as FacetrainError;
    return [code, exitCode];
  };
  assert.equal(await second.explain(failure), failure);

  await startedAgain.claim();
  assert.deepEqual(await codesOf(second, failure), ['PeerLost', ExitCode.peerLost]);
  assert.equal(await second.explain(lostPeer), lostPeer);
  // The rank 0 that was there before must not come back.
  assert.deepEqual(await codesOf(first, failure), ['FencedOff', ExitCode.fencedOff]);

  await next.claim();
  assert.deepEqual(await codesOf(second, lostPeer), ['FencedOff', ExitCode.fencedOff]);
  for (const folders of [first, second, startedAgain, next]) folders.close();
});
