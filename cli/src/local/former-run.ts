/**
 * Runs of version 0.1, whose run.json holds only a digest of the spec. What they trained is read from the trainers'
 * config.json, which the run has kept.
 */
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { type FaceTrainJob, TrainerConfig } from '@facetrain/api';
import { plannedTrainerConfig } from './planned-config.ts';

/** Fields of config.json that decide what is trained, and where they come from. */
const FIELDS: [path: string[], manifest: string][] = [
  [['dataset', 'path'], 'spec.dataset.uri'],
  [['model'], 'spec.model'],
  [['loss'], 'spec.loss'],
  [['optimizer'], 'spec.optimizer'],
  [['schedule'], 'spec.schedule'],
  [['globalBatchSize'], 'spec.globalBatchSize'],
  [['epochs'], 'spec.epochs'],
  [['seed'], 'spec.seed'],
  [['augment'], 'spec.augmentation'],
  [['checkpoint', 'directory'], 'spec.checkpoint.uri'],
];

type Config = Pick<TrainerConfig, 'job'> & Record<string, unknown>;

/** config.json of the newest attempt that trained, with the defaults of later fields; undefined when there is none. */
export function lastTrainerConfig(stateFolder: string): Config | undefined {
  const folder = join(stateFolder, 'config');
  const found = names(folder).flatMap((name) => {
    try {
      const file = join(folder, name, 'config.json');
      const written = JSON.parse(readFileSync(file, 'utf8')) as Config;
      if (!('globalBatchSize' in written)) return [];
      // Version 0.1 ended at the first picture that it could not use.
      const dataset = { maxBadPictures: 0, ...(written.dataset as object) };
      const { data: config = written } = TrainerConfig.safeParse({ ...written, dataset });
      return [{ config, time: statSync(file).mtimeMs }];
    } catch {
      return [];
    }
  });
  return found.sort((a, b) => b.time - a.time)[0]?.config;
}

/** Fields of the manifest that decide what is trained and differ from an earlier attempt's configuration. */
export function differingFields(config: Config, job: FaceTrainJob, stateFolder: string): string[] {
  const planned = plannedTrainerConfig(job, config.job.uid, stateFolder);
  const at = (value: unknown, path: string[]) =>
    path.reduce<unknown>((inner, key) => (inner as Record<string, unknown> | undefined)?.[key], value);
  return FIELDS.filter(([path]) => !isDeepStrictEqual(at(config, path), at(planned, path))).map(([, name]) => name);
}

function names(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}
