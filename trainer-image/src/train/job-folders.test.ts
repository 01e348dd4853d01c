import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, mock, test } from 'node:test';
import type { FacetrainError } from '@facetrain/api';
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
    folders.stopWatching();
  });

test('one folder for checkpoints and output is claimed once', async () => {
  const folder = await mkdtemp(join(top, 'job-'));
  const base = trainerConfig(folder);
  const config = { ...base, outputDirectory: folder, checkpoint: { ...base.checkpoint, directory: `${folder}/.` } };
  const folders = new JobFolders(config, { log: pino({ level: 'silent' }) });
  await folders.claim();
  await folders.checkpoints.write(join(folder, 'a'), '');
  await folders.output.write(join(folder, 'b'), '');
  folders.stopWatching();
});
