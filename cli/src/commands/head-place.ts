/** Where `facetrain head` finds checkpoints: in a folder of this machine, or behind the head of an object store. */
import { randomUUID } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import { basename, dirname, resolve } from 'node:path';
import { FacetrainError, type StorageAddress } from '@facetrain/api';
import {
  type EditedFiles,
  editedFolder,
  type OpenHead,
  openHeads,
  openHeadsOf,
  removeUnnamed,
} from '@facetrain/trainer/checkpoint/edit-head';
import { ObjectTarget } from '@facetrain/trainer/checkpoint/object-target';
import { type SearchResult, searchBytes, searchFiles } from '@facetrain/trainer/checkpoint/search-bytes';
import { Fence } from '@facetrain/trainer/storage/fence';
import { ObjectFence, readHead } from '@facetrain/trainer/storage/object-fence';
import { storeForPerson } from '../results/store-for-person.ts';

/** How this machine reaches an object store. Credentials are those that the AWS SDK finds. */
export type StoreOptions = Partial<Pick<StorageAddress, 'forcePathStyle'>> & { endpoint?: string; region?: string };

/** A place of checkpoints that no trainer can write to any more. */
export interface HeadPlace extends Disposable {
  /** Newest first. @throws FacetrainError InvalidCheckpoint, StorageFailed */
  heads(): Promise<OpenHead[]>;
  edit(head: OpenHead): EditedFiles;
  /** Completes what an edit that was killed has left of a checkpoint that needs no change. */
  tidy(head: OpenHead): Promise<void>;
  search(needles: readonly Buffer[]): Promise<SearchResult>;
  /** Checkpoints that are damaged, and not changed. */
  damaged(): Promise<string[]>;
  /** What may have copies of the old files, for people; null: nothing that is known. */
  readonly copies: string | null;
}

/** Of the claim. A trainer that runs against the advice cannot write another checkpoint of the old head after it. */
const owner = () => ({ name: 'facetrain-head', uid: 'facetrain-head', attempt: 0, start: randomUUID() });

/**
 * Claims a place in which there are checkpoints.
 * @param where a folder, or s3://BUCKET/PREFIX
 * @throws FacetrainError InvalidArgument, InvalidCheckpoint, FencedOff, StorageFailed
 */
export function openPlace(where: string, options: StoreOptions): Promise<HeadPlace> {
  if (where.startsWith('s3://')) return openStore(where, options);
  const { endpoint, region, forcePathStyle } = options;
  if ([endpoint, region, forcePathStyle].some((option) => option !== undefined))
    throw new FacetrainError({
      code: 'InvalidArgument',
      subject: where,
      found: 'a folder, with an option for object stores',
      allowed: 's3://BUCKET/PREFIX, or no --endpoint, --region and --force-path-style',
    });
  return openFolder(resolve(where));
}

async function openFolder(root: string): Promise<HeadPlace> {
  if (/^step-\d{10}$/.test(basename(root)))
    throw new FacetrainError({
      code: 'InvalidCheckpoint',
      subject: root,
      found: 'one checkpoint',
      allowed: `the folder with all of them, which are changed together: ${dirname(root)}`,
    });
  await openHeads(root); // Nothing is claimed in a folder without checkpoints.
  const fence = await Fence.claim(root, owner());
  return {
    heads: () => openHeads(root),
    edit: ({ checkpoint }) => editedFolder(fence, checkpoint.directory),
    tidy: ({ checkpoint }) => removeUnnamed(fence, checkpoint),
    search: (needles) => searchBytes(root, needles),
    damaged: async () => (await readdir(root)).filter((name) => name.startsWith('damaged-')),
    copies: null,
    [Symbol.dispose]() {},
  };
}

async function openStore(
  uri: string,
  { endpoint = '', region = '', forcePathStyle = false }: StoreOptions,
): Promise<HeadPlace> {
  const address = { uri, endpoint: endpoint || null, region: region || null, forcePathStyle };
  const store = storeForPerson(address);
  try {
    const found = await readHead(store);
    if (!found?.head.checkpoints.length)
      throw new FacetrainError({
        code: 'InvalidCheckpoint',
        subject: uri,
        found: found ? 'no checkpoint' : 'no fences/head.json',
        allowed: 'the prefix of checkpoints, such as s3://models/faces/checkpoints',
      });
    const target = new ObjectTarget(await ObjectFence.claim(store, owner()));
    await target.removeUnfinished((message) => void process.stderr.write(`${message}\n`));
    return {
      heads: () => openHeadsOf(target),
      edit: ({ checkpoint }) => target.edit(checkpoint.manifest.step),
      // What an edit leaves that was killed is in no checkpoint, and was removed above.
      tidy: async () => {},
      search: async (needles) =>
        searchFiles(
          (await store.list('')).map((name) => ({
            name: store.uri(name),
            read: (into, position) => store.read(name, into, position),
          })),
          needles,
        ),
      damaged: () => target.damaged(),
      copies: 'a bucket with versions has the old objects until they expire or are deleted',
      [Symbol.dispose]: () => store.close(),
    };
  } catch (error) {
    store.close();
    throw error;
  }
}
