import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, mock, test } from 'node:test';
import { ExitCode, type FacetrainError, type TrainerConfig } from '@facetrain/api';
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

/** Two ranks, each with the folders of its own configuration, in a gang without trainers. @returns their errors */
async function share(configs: [TrainerConfig, TrainerConfig]): Promise<unknown[]> {
  const ranks = configs.map((config) => new JobFolders(config, { log: pino({ level: 'silent' }) }));
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
  const ends = await Promise.allSettled(ranks.map((folders, rank) => folders.share(sessionOf(rank), 0)));
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
