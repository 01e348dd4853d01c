/** `facetrain head merge` and `remove`: identities of the checkpoints of a folder or an object store. */
import { isDeepStrictEqual } from 'node:util';
import { counted, ExitCode, FacetrainError } from '@facetrain/api';
import {
  editHead,
  type HeadEdit,
  merger,
  type OpenHead,
  removal,
  storedRows,
} from '@facetrain/trainer/checkpoint/edit-head';
import { writeAtomically } from '@facetrain/trainer/storage/atomic-files';
import { bytes, type StatusLine, table } from '../terminal-output.ts';
import { type HeadPlace, openPlace, type StoreOptions } from './head-place.ts';

export interface MergeOptions extends StoreOptions {
  classes: number[];
  into: number;
  /** Receives the map of labels. */
  map?: string;
}

export interface RemoveOptions extends StoreOptions {
  classes: number[];
}

/** Bytes of a row by which it is recognised: at most, and at least. A sum of squares is a number like others. */
const SEARCHED_BYTES = { most: 256, least: 16 };

export interface EditedCheckpoint {
  step: number;
  bytesWritten: number;
}

/**
 * Edits all checkpoints, the oldest first: if the command is killed, the newest is whole for longest.
 * @param editOf is called for each, the newest first, with the classes of the largest
 * @throws FacetrainError InvalidCheckpoint, InvalidArgument, FencedOff, DiskFull, StorageFailed
 */
export async function editAll(
  place: HeadPlace,
  line: StatusLine,
  editOf: (head: OpenHead, numClasses: number) => Promise<HeadEdit>,
): Promise<EditedCheckpoint[]> {
  // All edits are known to be possible before the first is carried out.
  const edits: { head: OpenHead; edit: HeadEdit }[] = [];
  const heads = await place.heads();
  const numClasses = Math.max(...heads.map(({ checkpoint }) => checkpoint.manifest.numClasses));
  for (const head of heads) edits.push({ head, edit: await editOf(head, numClasses) });
  const edited: EditedCheckpoint[] = [];
  for (const { head, edit } of edits.reverse()) {
    const { step } = head.checkpoint.manifest;
    line.show('Editing', `step ${step}`);
    const isNothing = edit.zero.length === 0 && edit.replace.size === 0 && edit.add.length === 0;
    if (isNothing && isDeepStrictEqual(edit.retired, head.identities.retired)) {
      await place.tidy(head);
      edited.push({ step, bytesWritten: 0 });
    } else edited.push({ step, bytesWritten: await editHead(place.edit(head), head, edit) });
  }
  line.clear();
  return edited.reverse();
}

/**
 * Removes classes from every checkpoint, and then looks for their rows in all files there.
 * @param where a folder, or a prefix of an object store
 * @throws FacetrainError as openPlace and editAll; the exit code is 1 when a row was found
 */
export async function removeIdentities(where: string, options: RemoveOptions, line: StatusLine) {
  const classes = [...new Set(options.classes)];
  using place = await openPlace(where, options);
  const needles: Buffer[] = [];
  const searchedFor = new Set<number>();
  const mergedInto = new Map<number, number>();
  const edited = await editAll(place, line, async (head, numClasses) => {
    const edit = removal(head, classes, numClasses);
    for (const { class: id, into } of head.identities.retired)
      if (classes.includes(id) && into !== null && !classes.includes(into)) mergedInto.set(id, into);
    for (const [label, needle] of await needlesOf(head, edit.zero)) {
      searchedFor.add(label);
      needles.push(needle);
    }
    return edit;
  });
  line.show('Searching', where);
  const search = await place.search(needles);
  line.clear();
  const searched = searchedFor.size;
  const damaged = await place.damaged();
  const gone = search.found.length === 0;
  return {
    json: {
      removed: classes,
      mergedBefore: [...mergedInto].map(([id, into]) => ({ class: id, into })),
      checkpoints: edited,
      search: { classes: searched, ...search },
      damaged,
    },
    text: table([
      ['Removed', `${counted(classes.length, 'class')} from ${counted(edited.length, 'checkpoint')}: ${steps(edited)}`],
      [
        'Searched',
        searched === 0
          ? 'nothing: all their rows were zero before'
          : `${counted(search.files, 'file')} (${bytes(search.bytes)}) for the former rows of ${searched} of them: ` +
            (gone ? 'none is there' : `FOUND in ${search.found.join(', ')}; delete these files`),
      ],
      ...(damaged.length > 0
        ? [
            ['Not changed', `${damaged.join(', ')}: damaged checkpoints; delete them, they may hold removed rows`] as [
              string,
              string,
            ],
          ]
        : []),
      ...(place.copies ? [['Copies', place.copies] as [string, string]] : []),
      ['Their pictures', 'are left out of the training that goes on from here'],
      ...[...mergedInto].map(([id, into]): [string, string] => [
        'Still trained',
        `class ${into}, into which ${id} was merged: its class centre is made of both. Remove it, too, if it is the ` +
          'same person',
      ]),
    ]),
    exitCode: gone ? ExitCode.success : ExitCode.failure,
  };
}

/** @throws FacetrainError as openPlace and editAll */
export async function mergeIdentities(where: string, options: MergeOptions, line: StatusLine) {
  const { into, map } = options;
  const classes = [...new Set(options.classes)];
  using place = await openPlace(where, options);
  let labels: { class: number; into: number }[] = [];
  const edited = await editAll(place, line, async (head, numClasses) => {
    const edit = await merger(head, classes, into, numClasses);
    // Newest first: the map is that of the newest checkpoint.
    if (labels.length === 0)
      labels = edit.retired.flatMap((each) => (each.into === null ? [] : [{ ...each, into: each.into }]));
    return edit;
  });
  if (map !== undefined) await writeAtomically(map, labels.map((each) => `${each.class}\t${each.into}\n`).join(''));
  return {
    json: { merged: classes, into, checkpoints: edited, labels },
    text: table([
      ['Merged', `${classes.join(', ')} into ${into}, in ${counted(edited.length, 'checkpoint')}: ${steps(edited)}`],
      ['Their pictures', `count as those of class ${into} in the training that goes on from here`],
      ...(map === undefined
        ? []
        : [['Map of labels', `${map}: ${counted(labels.length, 'class')}`] as [string, string]]),
    ]),
  };
}

export const steps = (edited: readonly EditedCheckpoint[]) =>
  edited.map(({ step, bytesWritten }) => `step ${step} (${bytes(bytesWritten)} written)`).join(', ');

/** The first bytes of centres, momentum and moments that are not zero, by class, as the files hold them. */
async function needlesOf({ checkpoint }: OpenHead, classes: readonly number[]): Promise<[number, Buffer][]> {
  return (await storedRows(checkpoint, classes)).flatMap(({ class: label, tensors }) =>
    tensors
      .map((row): [number, Buffer] => [label, Buffer.from(row).subarray(0, SEARCHED_BYTES.most)])
      .filter(([, needle]) => needle.length >= SEARCHED_BYTES.least && needle.some((byte) => byte !== 0)),
  );
}

/** @throws FacetrainError InvalidArgument */
export function refuse(subject: string, found: string, allowed: string): never {
  throw new FacetrainError({ code: 'InvalidArgument', subject, found, allowed });
}
