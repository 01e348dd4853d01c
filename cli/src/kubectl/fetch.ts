/** `kubectl facetrain fetch`: where the results of a job lie, and how this machine reads them there. */
import { OUTPUT, parseStorageUri, type StorageRef, storageAddress } from '@facetrain/api';
import { below, checkpointsPlace, type OutputFolders } from '@facetrain/planner/written-places';
import type { Outcome } from '../command-action.ts';
import { copyResults } from '../results/copy-results.ts';
import { isPart, PARTS, type Part } from '../results/parts.ts';
import { type ResultSource, StoredResults } from '../results/result-source.ts';
import type { StatusLine } from '../terminal-output.ts';
import { type Cluster, type Job, refusal } from './cluster.ts';
import { VolumeResults } from './volume-results.ts';

export interface FetchOptions {
  /** Default: a folder with the job's name. */
  to?: string;
  /** Of a checkpoint; default: the newest. */
  step?: number;
  /** URL of the object store, as this machine reaches it; default: that of the job, which only pods may reach. */
  endpoint?: string;
  /** Of the pod that reads a volume; default: that of the job's pods. */
  image?: string;
  /** Of that pod. */
  port?: number;
}

/** @throws FacetrainError InvalidArgument, and as copyResults */
export async function fetchResults(
  cluster: Cluster,
  name: string,
  part: string | undefined,
  { to = name, step, endpoint, image, port }: FetchOptions,
  line: StatusLine,
  signal: AbortSignal,
): Promise<Outcome> {
  const job = await cluster.job(name);
  const chosen = part ?? (job.spec.quantize === undefined ? 'model' : 'int7');
  if (!isPart(chosen)) throw refusal('part', chosen, PARTS.join(', '));
  if (step !== undefined && chosen !== 'checkpoint') throw refusal('--step', `${step} with ${chosen}`, 'checkpoint');
  const show = (detail: string) => line.show('Fetching', detail);
  const source = await open(cluster, job, placeOf(job, chosen), { endpoint, image, port, show, signal });
  try {
    const copied = await copyResults(source, { part: chosen, to, step, show });
    const what = { model: 'model', int7: 'INT7 model', checkpoint: `checkpoint of step ${copied.step}` }[chosen];
    const { folder, files, wasThere } = copied;
    const text = wasThere
      ? `The ${what} of ${name} is in ${folder} already\n`
      : `The ${what} of ${name} is in ${folder}: ${files.join(', ')}\n`;
    return { json: { job: name, source: source.uri, ...copied }, text };
  } finally {
    line.clear();
    await source.close();
  }
}

function placeOf({ metadata: { name }, spec }: Job, part: Part): StorageRef {
  const folders = spec as unknown as OutputFolders & { quantize?: { output?: StorageRef } };
  if (part === 'model') return folders.output;
  if (part === 'checkpoint') return checkpointsPlace(folders);
  if (folders.quantize) return folders.quantize.output ?? below(folders.output, OUTPUT.int7);
  throw refusal(`FaceTrainJob ${name}`, 'has no spec.quantize', 'model or checkpoint');
}

interface OpenOptions {
  endpoint: string | undefined;
  image: string | undefined;
  port: number | undefined;
  show: (detail: string) => void;
  signal: AbortSignal;
}

function open(cluster: Cluster, job: Job, place: StorageRef, options: OpenOptions): Promise<ResultSource> {
  const { scheme } = parseStorageUri(place.uri);
  const { endpoint, signal } = options;
  if (scheme === 's3')
    return Promise.resolve(new StoredResults({ ...storageAddress(place), ...(endpoint && { endpoint }) }, signal));
  if (endpoint !== undefined) throw refusal('--endpoint', `${endpoint} for ${place.uri}`, 'results in s3://');
  if (scheme === 'pvc') return VolumeResults.open(cluster, job, place.uri, options);
  throw refusal(
    place.uri,
    scheme === 'file' ? 'a path in the pods' : 'a folder of a node',
    'pvc:// or s3://; copy it there by other means',
  );
}
