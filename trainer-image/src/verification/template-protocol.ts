/**
 * The 1:1 protocol of IJB-B and IJB-C: faces are compared as templates, sets of pictures and video frames of a person.
 * A folder as insightface publishes it (recognition/arcface_torch/eval_ijbc.py), with the text files
 *
 *     meta/…_face_tid_mid.txt         a line for each picture: its name, template and medium
 *     meta/…_template_pair_label.txt  a line for each pair: two templates, and 1 for the same person or 0
 *     meta/…_name_5pts_score.txt      a line for each picture, in the same order: its name, the x and y of five points
 *                                     of the face, and the score of the face detector
 *
 * and the pictures in loose_crop/. Without the third file they are aligned, and of the size that the model reads.
 */
import { createReadStream } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { counted, FacetrainError, fileCause } from '@facetrain/api';

export interface TemplateProtocol {
  folder: string;
  /** Sorted by template, then medium. */
  pictures: TemplatePicture[];
  /** By row of the templates' embeddings, ascending: the number of each template. */
  templates: number[];
  media: number;
  /** By pair: rows of two templates. */
  first: Int32Array;
  second: Int32Array;
  same: boolean[];
}

export interface TemplatePicture {
  path: string;
  /** A row of `templates`. */
  template: number;
  medium: number;
  /** Ten numbers: x and y of five points; null: the picture is aligned. */
  landmarks: readonly number[] | null;
  /** The weight of the picture among those of its medium. */
  score: number;
}

const SUFFIXES = {
  faces: '_face_tid_mid.txt',
  pairs: '_template_pair_label.txt',
  landmarks: '_name_5pts_score.txt',
} as const;
const PICTURES = 'loose_crop';

const invalid = (subject: string, found: string, allowed: string, cause?: unknown) =>
  new FacetrainError({ code: 'InvalidVerificationSet', subject, found, allowed, cause });

/**
 * @throws FacetrainError InvalidVerificationSet for a file that is missing or has a line of another form, a pair of a
 *   template without pictures, and pairs of one kind alone
 */
export async function readTemplateProtocol(folder: string): Promise<TemplateProtocol> {
  const files = await protocolFiles(folder);
  const rows: { name: string; template: number; medium: number }[] = [];
  await forEachLine(files.faces, 3, 'name template medium', ([name, template, medium], at) => {
    rows.push({ name: plainName(name!, at), template: integer(template!, at), medium: integer(medium!, at) });
  });
  if (rows.length === 0) throw invalid(files.faces, 'no lines', 'a line for each picture: name template medium');
  const points = files.landmarks === undefined ? undefined : await readLandmarks(files.landmarks, rows);

  const templates = [...new Set(rows.map(({ template }) => template))].toSorted((a, b) => a - b);
  const rowOf = new Map(templates.map((template, row) => [template, row]));
  const pictures = rows
    .map(
      ({ name, template, medium }, i): TemplatePicture => ({
        path: join(folder, PICTURES, name),
        template: rowOf.get(template)!,
        medium,
        ...(points ? points[i]! : { landmarks: null, score: 1 }),
      }),
    )
    .toSorted((a, b) => a.template - b.template || a.medium - b.medium);
  const media = pictures.filter(
    ({ template, medium }, i) => template !== pictures[i - 1]?.template || medium !== pictures[i - 1]?.medium,
  ).length;

  const [first, second]: number[][] = [[], []];
  const same: boolean[] = [];
  await forEachLine(files.pairs, 3, 'template template 0-or-1', ([a, b, label], at) => {
    for (const [text, list] of [
      [a!, first!],
      [b!, second!],
    ] as const) {
      const row = rowOf.get(integer(text, at));
      if (row === undefined) throw invalid(at(), `template ${text}`, 'a template that has pictures');
      list.push(row);
    }
    if (label !== '0' && label !== '1') throw invalid(at(), JSON.stringify(label), '1 for the same person, or 0');
    same.push(label === '1');
  });
  const positives = same.filter(Boolean).length;
  if (positives === 0 || positives === same.length)
    throw invalid(files.pairs, `${positives} of ${same.length} pairs are of one person`, 'pairs of both kinds');
  return {
    folder,
    pictures,
    templates,
    media,
    first: Int32Array.from(first!),
    second: Int32Array.from(second!),
    same,
  };
}

async function protocolFiles(folder: string): Promise<{ faces: string; pairs: string; landmarks?: string }> {
  const meta = join(folder, 'meta');
  let names: string[];
  try {
    names = await readdir(meta);
  } catch (cause) {
    throw invalid(meta, fileCause(cause), 'a folder with the files of a protocol of templates', cause);
  }
  const find = (suffix: string, isNeeded: boolean) => {
    const found = names.filter((name) => name.endsWith(suffix));
    if (found.length > 1 || (found.length === 0 && isNeeded))
      throw invalid(meta, `${found.length} files *${suffix}`, `one ${isNeeded ? '' : 'or none'}`.trim());
    return found[0] === undefined ? undefined : join(meta, found[0]);
  };
  const landmarks = find(SUFFIXES.landmarks, false);
  return {
    faces: find(SUFFIXES.faces, true)!,
    pairs: find(SUFFIXES.pairs, true)!,
    ...(landmarks !== undefined && { landmarks }),
  };
}

/** Calls `body` with the words of each line that has some; `at()` names it. Files have millions of them. */
async function forEachLine(
  path: string,
  words: number,
  form: string,
  body: (words: string[], at: () => string) => void,
): Promise<void> {
  let number = 0;
  try {
    for await (const line of createInterface({ input: createReadStream(path), crlfDelay: Number.POSITIVE_INFINITY })) {
      number += 1;
      if (line.trim() === '') continue;
      const at = () => `${path}, line ${number}`;
      const found = line.trim().split(/\s+/);
      if (found.length !== words) throw invalid(at(), JSON.stringify(line.slice(0, 100)), form);
      body(found, at);
    }
  } catch (cause) {
    throw cause instanceof FacetrainError ? cause : invalid(path, fileCause(cause), 'a text file', cause);
  }
}

async function readLandmarks(
  path: string,
  rows: readonly { name: string }[],
): Promise<{ landmarks: number[]; score: number }[]> {
  const found: { landmarks: number[]; score: number }[] = [];
  await forEachLine(path, 12, 'name, ten coordinates, score', ([name, ...texts], at) => {
    if (found.length === rows.length) throw invalid(at(), 'one more line', `${rows.length}, one for each picture`);
    const expected = rows[found.length]!.name;
    if (name !== expected)
      throw invalid(at(), JSON.stringify(name), `${JSON.stringify(expected)}, as in the same line of the templates`);
    const numbers = texts.map(Number);
    const wrong = numbers.findIndex((value) => !Number.isFinite(value));
    if (wrong >= 0) throw invalid(at(), JSON.stringify(texts[wrong]), 'a number');
    const score = numbers[10]!;
    // An embedding is weighted by it: a negative one would be that of an opposite face.
    if (score < 0) throw invalid(at(), `the score ${texts[10]}`, '0 or more, as face detectors give');
    found.push({ landmarks: numbers.slice(0, 10), score });
  });
  if (found.length !== rows.length)
    throw invalid(path, counted(found.length, 'line'), `${rows.length}, one for each picture`);
  return found;
}

/** A name in a folder below the pictures': no other file is read. */
function plainName(name: string, at: () => string): string {
  if (name.startsWith('/') || name.split('/').includes('..'))
    throw invalid(at(), JSON.stringify(name), `the name of a file in ${PICTURES}/`);
  return name;
}

function integer(text: string, at: () => string): number {
  if (!/^\d{1,9}$/.test(text)) throw invalid(at(), JSON.stringify(text), 'a whole number');
  return Number(text);
}
