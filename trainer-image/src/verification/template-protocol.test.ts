import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { FacetrainError } from '@facetrain/api';
import { decodePictures, type Embedder, type Pictures } from '@facetrain/native';
import { shippedJpeg } from '../testing/dataset-fixtures.ts';
import { embedTemplates, verifyTemplates } from './evaluate-templates.ts';
import { readTemplateProtocol } from './template-protocol.ts';

/** insightface's template for 112 x 112: a face that is aligned already. */
const ALIGNED = '38.2946 51.6963 73.5318 51.5014 56.0252 71.7366 41.5493 92.3655 70.7299 92.2041';
/** Name, template, medium, score: a video of two frames, one of which stands elsewhere in the file. */
const FACES = [
  ['a0.jpg', 30, 7, 0.5],
  ['b0.jpg', 4, 7, 1],
  ['a1.jpg', 30, 2, 0.75],
  ['a2.jpg', 30, 7, 0.25],
  ['c0.jpg', 9, 1, 1],
  ['d0.jpg', 10, 1, 1],
] as const;
const PAIRS = ['30 4 0', '30 9 1', '4 10 1', '9 10 0', '10 30 0'];
const DIM = 12;
const INPUT = { height: 112, width: 112 };

let root: string;
before(async () => {
  root = await mkdtemp(join(tmpdir(), 'facetrain-templates-'));
});
after(() => rm(root, { recursive: true }));

let folders = 0;
/** Writes a protocol; a file that is null is left out. */
async function protocol(files: Partial<Record<'faces' | 'pairs' | 'landmarks', string | null>> = {}): Promise<string> {
  const folder = join(root, String(folders++));
  await mkdir(join(folder, 'meta'), { recursive: true });
  await mkdir(join(folder, 'loose_crop'));
  const texts = {
    faces: FACES.map(([name, template, medium]) => `${name} ${template} ${medium}\n`).join(''),
    pairs: `${PAIRS.map((pair) => `${pair}\n`).join('')}\n`,
    landmarks: FACES.map(([name, , , score]) => `${name} ${ALIGNED} ${score}\n`).join(''),
    ...files,
  };
  const names = { faces: 'face_tid_mid', pairs: 'template_pair_label', landmarks: 'name_5pts_score' };
  for (const [kind, text] of Object.entries(texts))
    if (text !== null) await writeFile(join(folder, 'meta', `ijbx_${names[kind as keyof typeof names]}.txt`), text);
  for (const [i, [name]] of FACES.entries()) await writeFile(join(folder, 'loose_crop', name), shippedJpeg(20 * i));
  return folder;
}

/** Numbers that depend on the picture; lengths differ. */
const embedder: Embedder = {
  dim: DIM,
  async embed({ count, data }: Pictures): Promise<Float32Array> {
    const bytes = data.length / count;
    return Float32Array.from({ length: count * DIM }, (_, at) => {
      const picture = Math.floor(at / DIM) * bytes;
      const step = Math.floor(bytes / DIM);
      const part = data.subarray(picture + (at % DIM) * step, picture + (at % DIM) * step + step);
      return part.reduce((sum, byte) => sum + byte, 0) / step - 100;
    });
  },
  async close() {},
};

describe('templates of IJB-C', () => {
  test('frames are averaged by the detector’s score, media are added, and pairs are judged', async () => {
    const read = await readTemplateProtocol(await protocol());
    assert.deepEqual([read.templates, read.media, read.pictures.length], [[4, 9, 10, 30], 5, 6]);
    const found = await embedTemplates(embedder, read, { input: INPUT, channelOrder: 'rgb', flip: false });

    const pictures = await decodePictures(
      FACES.map((_, i) => shippedJpeg(20 * i)),
      { channelOrder: 'rgb', ...INPUT, subjects: FACES.map(([name]) => name), code: 'InvalidVerificationSet' },
    );
    const features = await embedder.embed(pictures, { flip: false });
    const feature = (name: string) => {
      const i = FACES.findIndex(([own]) => own === name);
      return Array.from(features.subarray(i * DIM, (i + 1) * DIM), (value) => value * FACES[i]![3]);
    };
    const add = (...lists: number[][]) => lists[0]!.map((_, k) => lists.reduce((sum, list) => sum + list[k]!, 0));
    const unit = (list: number[]) => list.map((value) => value / Math.hypot(...list));
    const frames = add(feature('a0.jpg'), feature('a2.jpg')).map((value) => value / 2);
    const expected = new Map([
      [4, unit(feature('b0.jpg'))],
      [9, unit(feature('c0.jpg'))],
      [10, unit(feature('d0.jpg'))],
      [30, unit(add(frames, feature('a1.jpg')))],
    ]);
    const wanted = [4, 9, 10, 30].flatMap((template) => expected.get(template)!);
    for (const [at, value] of wanted.entries()) assert.ok(Math.abs(found.unit[at]! - value) < 2e-3, `${at}: ${value}`);
    const norms = [feature('b0.jpg'), feature('c0.jpg'), feature('d0.jpg'), add(frames, feature('a1.jpg'))];
    for (const [row, sum] of norms.entries())
      assert.ok(Math.abs(found.lengths[row]! / Math.hypot(...sum) - 1) < 2e-3, `template ${row}`);

    const cosines = PAIRS.map((pair) => {
      const [a, b, label] = pair.split(' ').map(Number) as [number, number, number];
      const cosine = expected.get(a)!.reduce((sum, value, k) => sum + value * expected.get(b)![k]!, 0);
      return { cosine, same: label === 1 };
    });
    const hardest = Math.max(...cosines.filter(({ same }) => !same).map(({ cosine }) => cosine));
    const accepted = cosines.filter(({ cosine, same }) => same && cosine > hardest).length;
    const groups = ['x', 'x', 'y', 'y', 'x'];
    const verified = verifyTemplates(found, DIM, read, groups);
    assert.deepEqual(verified.tarAtFar, { '1e-3': accepted / 2 });
    assert.deepEqual([verified.positives, verified.negatives, verified.pairs], [2, 3, 5]);
    assert.deepEqual(verified.unresolvedFar['1e-6'], 1_000_000);
    assert.deepEqual(
      verified.groups!.figures.map(({ group, pairs, falseAcceptRate }) => [group, pairs, falseAcceptRate]),
      [
        ['x', 3, 0],
        ['y', 2, 0],
      ],
    );
    assert.equal(verified.groups!.far, '1e-3');
    const { far, figures } = verified.byNorm;
    assert.deepEqual([far, figures.map(({ pairs }) => pairs)], ['1e-3', [1, 1]]);
    assert.equal(figures[0]!.falseRejectRateFromHere, 1 - accepted / 2);
  });

  test('rates down to 1e-6 of a million pairs of different people', () => {
    // Template 0 and others on a circle: pair i of different people has the i-th smallest distance.
    const pairs = 1_000_010;
    const templates = Float32Array.from({ length: 2 * 2000 }, (_, at) => {
      const angle = (Math.floor(at / 2) / 2000) * Math.PI * 0.5;
      return at % 2 === 0 ? Math.cos(angle) : Math.sin(angle);
    });
    const second = Int32Array.from({ length: pairs }, (_, pair) =>
      pair < 10 ? 100 * pair + 50 : 1000 + (pair % 1000),
    );
    const same = Array.from({ length: pairs }, (_, pair) => pair < 10);
    const lengths = new Float64Array(2000).fill(1);
    const { tarAtFar, unresolvedFar, intervals } = verifyTemplates({ unit: templates, lengths }, 2, {
      folder: '',
      pictures: [],
      templates: Array.from({ length: 2000 }, (_, i) => i),
      media: 0,
      first: new Int32Array(pairs),
      second,
      same,
    });
    // All pairs of different people are farther than those of one person: 950 < 1000.
    assert.deepEqual(Object.keys(tarAtFar), ['1e-1', '1e-2', '1e-3', '1e-4', '1e-5', '1e-6']);
    assert.deepEqual([tarAtFar['1e-6'], unresolvedFar], [1, {}]);
    assert.ok(intervals.tarAtFar['1e-6']![0] < 0.8);
  });

  test('false rejects by the quality of templates, and what is left without the worst', () => {
    const degrees = [0, 10, 20, 30, 40, 50, 60];
    const unit = Float32Array.from(
      degrees.flatMap((angle) => [Math.cos, Math.sin].map((f) => f((angle * Math.PI) / 180))),
    );
    const { byNorm } = verifyTemplates({ unit, lengths: Float64Array.of(100, 9, 3, 1, 1, 2, 1) }, 2, {
      ...{ folder: '', pictures: [], templates: [0, 1, 2, 3, 4, 5, 6], media: 0 },
      first: new Int32Array(6),
      second: Int32Array.of(1, 2, 3, 4, 5, 6),
      // Pairs of different people are 30 and 60 degrees apart.
      same: [true, true, false, true, true, false],
    });
    assert.deepEqual(byNorm, {
      far: '1e-3',
      figures: [
        { from: 1, to: 1, pairs: 1, falseRejects: 1, falseRejectRateFromHere: 0.5 },
        { from: 2, to: 2, pairs: 1, falseRejects: 1, falseRejectRateFromHere: 1 / 3 },
        { from: 3, to: 3, pairs: 1, falseRejects: 0, falseRejectRateFromHere: 0 },
        { from: 9, to: 9, pairs: 1, falseRejects: 0, falseRejectRateFromHere: 0 },
      ],
    });
  });

  const cases: Record<string, { files: Parameters<typeof protocol>[0]; want: RegExp }> = {
    'no file of pairs': { files: { pairs: null }, want: /meta: 0 files \*_template_pair_label\.txt; one/ },
    'a line of pictures with two words': {
      files: { faces: 'a0.jpg 1\n' },
      want: /face_tid_mid\.txt, line 1: "a0\.jpg 1"; name template medium/,
    },
    'a file outside of the folder': {
      files: { faces: '../secret 1 1\n' },
      want: /line 1: "\.\.\/secret"; the name of a file in loose_crop\//,
    },
    'a template without pictures': {
      files: { pairs: '30 5 1\n' },
      want: /pair_label\.txt, line 1: template 5; a template that has pictures/,
    },
    'a label of another kind': { files: { pairs: '30 4 2\n' }, want: /line 1: "2"; 1 for the same person, or 0/ },
    'pairs of one kind': { files: { pairs: '30 4 1\n' }, want: /1 of 1 pairs are of one person; pairs of both kinds/ },
    'landmarks of another picture': {
      files: { landmarks: `b0.jpg ${ALIGNED} 1\n` },
      want: /5pts_score\.txt, line 1: "b0\.jpg"; "a0\.jpg", as in the same line/,
    },
    'landmarks of some pictures': {
      files: { landmarks: `a0.jpg ${ALIGNED} 1\n` },
      want: /5pts_score\.txt: 1 line; 6, one for each picture/,
    },
    'landmarks of more pictures': {
      files: { faces: 'a0.jpg 1 1\n', landmarks: `a0.jpg ${ALIGNED} 1\nb0.jpg ${ALIGNED} 1\n` },
      want: /5pts_score\.txt, line 2: one more line; 1, one for each picture/,
    },
    'a coordinate that is no number': {
      files: { landmarks: `a0.jpg ${ALIGNED.replace('38.2946', 'left')} 1\n` },
      want: /line 1: "left"; a number/,
    },
    'a negative score': {
      files: { faces: 'a0.jpg 1 1\n', landmarks: `a0.jpg ${ALIGNED} -0.5\n` },
      want: /5pts_score\.txt, line 1: the score -0\.5; 0 or more/,
    },
  };
  for (const [name, { files, want }] of Object.entries(cases)) {
    test(`${name} is refused`, async () => {
      await assert.rejects(
        async () => readTemplateProtocol(await protocol(files)),
        (error) =>
          error instanceof FacetrainError && error.code === 'InvalidVerificationSet' && want.test(error.message),
      );
    });
  }

  test('a template whose embeddings are zero is named', async () => {
    const zero = { ...embedder, embed: async ({ count }: Pictures) => new Float32Array(count * DIM) };
    const read = await readTemplateProtocol(await protocol());
    await assert.rejects(
      embedTemplates(zero, read, { input: INPUT, channelOrder: 'rgb', flip: false }),
      /^FacetrainError: template 4: its length is 0; a finite vector that is not zero$/,
    );
  });

  test('a picture that is missing, damaged or has one point for landmarks is named', async () => {
    const folder = await protocol();
    const embed = async (of: string) =>
      embedTemplates(embedder, await readTemplateProtocol(of), { input: INPUT, channelOrder: 'rgb', flip: false });
    await writeFile(join(folder, 'loose_crop', 'c0.jpg'), 'no picture');
    await assert.rejects(embed(folder), /^FacetrainError: \S*loose_crop\/c0\.jpg: is /);
    await rm(join(folder, 'loose_crop', 'c0.jpg'));
    await assert.rejects(embed(folder), /loose_crop\/c0\.jpg: no such file or directory \(ENOENT\)/);
    const same = FACES.map(([name]) => `${name} ${'5 '.repeat(10)} 1\n`).join('');
    await assert.rejects(embed(await protocol({ landmarks: same })), /landmarks that are one point, or not finite/);
  });

  test('faces are aligned for models of square pictures alone', async () => {
    const read = await readTemplateProtocol(await protocol());
    await assert.rejects(
      embedTemplates(embedder, read, { input: { height: 112, width: 96 }, channelOrder: 'rgb', flip: false }),
      (error) =>
        error instanceof FacetrainError &&
        error.code === 'InvalidVerificationSet' &&
        /has landmarks, and the model reads pictures of 112 x 96; a model of square pictures/.test(error.message),
    );
  });

  test('without landmarks, pictures are taken as they are', async () => {
    const options = { input: INPUT, channelOrder: 'rgb', flip: false } as const;
    const ones = FACES.map(([name]) => `${name} ${ALIGNED} 1\n`).join('');
    const [aligned, plain] = [
      await embedTemplates(embedder, await readTemplateProtocol(await protocol({ landmarks: ones })), options),
      await embedTemplates(embedder, await readTemplateProtocol(await protocol({ landmarks: null })), options),
    ];
    for (const [at, value] of aligned!.unit.entries()) assert.ok(Math.abs(value - plain!.unit[at]!) < 2e-3);
  });
});
