/** The commands of `facetrain dataset`, and all commands of docs/data.md in their order. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { shippedJpeg, writeDataset, writeImageFolder } from '@facetrain/trainer/testing/dataset-fixtures';
import { exampleFaces, root } from '../../../hack/lib/paths.mjs';
import { facetrain, Running } from '../testing/run-cli.ts';

let scratch: string;
before(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'facetrain-dataset-'));
});
after(() => rm(scratch, { recursive: true }));

test('the commands of docs/data.md turn a folder of photos into a model', async () => {
  const page = readFileSync(join(root, 'docs/data.md'), 'utf8');
  const commands = [...page.matchAll(/^ {4}npx facetrain (.+)$/gm)].map(([, command]) => command!.split(' '));
  const [, manifest] = /^```yaml\n([\s\S]*?kind: FaceTrainJob[\s\S]*?)^```$/m.exec(page)!;
  assert.deepEqual(
    commands.map(([first, second]) => (first === 'dataset' ? `dataset ${second}` : first)),
    ['dataset check', 'dataset split', 'dataset pairs', 'run', 'eval', 'dataset index'],
  );
  writeImageFolder(join(scratch, 'photos'), { identities: 40, perIdentity: 4 });
  // A narrower network: the page's takes minutes.
  const narrow = manifest!.replace(
    'mobilefacenet}',
    'mobilefacenet, width: 1, blocks: [1, 1, 1, 1], embeddingDim: 32}',
  );
  assert.notEqual(narrow, manifest);
  await writeFile(join(scratch, 'job.yaml'), narrow);
  for (const command of commands) {
    const { code, stdout, stderr } = await new Running(command, { cwd: scratch }).outcome;
    assert.equal(code, 0, `${command.join(' ')}: ${stderr}`);
    if (command[0] === 'eval') assert.match(stdout, /Accuracy +\d+\.\d+ %/);
  }
  for (const file of ['faces/train/identities.txt', 'photos/facetrain.index', 'results/model/backbone.onnx'])
    assert.ok(existsSync(join(scratch, file)), file);
});

test('split keeps identities apart, in any layout, and refuses to write twice', async () => {
  const out = join(scratch, 'example');
  const split = ['dataset', 'split', exampleFaces, '--holdout', '0.25', '--out', out, '--json'];
  const { code, stdout } = await facetrain(...split);
  assert.equal(code, 0);
  const { parts } = JSON.parse(stdout) as { parts: { images: number; identities: number }[] };
  assert.deepEqual(
    parts.map(({ images, identities }) => [images, identities]),
    [
      [600, 30],
      [200, 10],
    ],
  );
  const names = (part: string) =>
    readFileSync(join(out, part, 'identities.txt'), 'utf8')
      .trimEnd()
      .split('\n')
      .map((line) => line.split('\t')[1]);
  assert.equal(new Set([...names('train'), ...names('heldout')]).size, 40);
  const members = execFileSync('tar', ['-tf', join(out, 'heldout', '000000.tar')], { encoding: 'utf8' });
  assert.match(members, /^000000000\.jpg\n000000000\.cls\n/);
  const again = await facetrain(...split);
  assert.equal(again.code, 2);
  assert.match(again.stderr, /example\/train: is there already/);
});

test('check counts what a person can act on', async () => {
  const faces = join(scratch, 'check');
  writeImageFolder(faces, { identities: 3, perIdentity: 2 });
  await rm(join(faces, 'person-2', '1.jpg'));
  await writeFile(join(faces, 'person-1', '9.jpg'), shippedJpeg(0)); // person-0/0.jpg
  const { code, stdout } = await facetrain('dataset', 'check', faces);
  assert.equal(code, 0);
  assert.match(stdout, /Pictures each +1 to 3, median 2/);
  assert.match(stdout, /One picture +1 identity:/);
  assert.match(stdout, /Duplicates +0 within an identity, 1 across identities; the latter are labelled wrongly/);
  assert.match(stdout, /person-0\/0\.jpg is also \S+person-1\/9\.jpg/);
});

test('check lists every bad picture, and its exit code follows the budget', async () => {
  const faces = join(scratch, 'bad');
  writeImageFolder(faces, { identities: 2, perIdentity: 5 });
  await writeFile(join(faces, 'person-0', '1.jpg'), 'GIF89a');
  await writeFile(join(faces, 'person-1', '4.jpg'), shippedJpeg(3).subarray(0, 900));
  const refused = await facetrain('dataset', 'check', faces);
  assert.equal(refused.code, 2);
  assert.match(refused.stdout, /Bad pictures +2; 1 are allowed by dataset\.maxBadPictures 0\.001/);
  assert.match(refused.stdout, /person-0\/1\.jpg: is a GIF\n.*person-1\/4\.jpg: /);
  const { code, stdout } = await facetrain('dataset', 'check', faces, '--max-bad-pictures', '0.2', '--json');
  assert.equal(code, 0);
  const { bad, badPictures } = JSON.parse(stdout) as { bad: number; badPictures: { picture: number }[] };
  assert.equal(bad, 2);
  assert.deepEqual(
    badPictures.map(({ picture }) => picture),
    [1, 9],
  );
  const wrong = await facetrain('dataset', 'check', faces, '--max-bad-pictures', '2');
  assert.equal(wrong.code, 2);
  assert.match(wrong.stderr, /--max-bad-pictures.*Must be a share from 0 to 1/);
});

test('pairs leaves out a picture that cannot be decoded, and refuses more pairs than there are', async () => {
  const faces = join(scratch, 'pairs');
  writeImageFolder(faces, { identities: 20, perIdentity: 3 });
  await writeFile(join(faces, 'person-4', '1.jpg'), 'no picture');
  await symlink('/nowhere', join(faces, 'person-5', '7.jpg'));
  const output = join(faces, '..', 'pairs.bin');
  const made = await facetrain('dataset', 'pairs', faces, '--pairs', '80', '--output', output, '--json');
  assert.equal(made.code, 0, made.stderr);
  assert.ok((JSON.parse(made.stdout) as { unreadable: number }).unreadable >= 1);
  const refused = await facetrain('dataset', 'pairs', faces, '--pairs', '400', '--output', output);
  assert.equal(refused.code, 2);
  assert.match(refused.stderr, /20 identities, .* give \d+ pairs; 400 pairs in 10 folds without a common person/);
});

test('index lists a folder, and says what a dataset is', async () => {
  const faces = join(scratch, 'index');
  writeImageFolder(faces, { identities: 2, perIdentity: 2 });
  const { code, stdout } = await facetrain('dataset', 'index', faces, '--json');
  assert.equal(code, 0);
  assert.deepEqual(JSON.parse(stdout), { folder: faces, layout: 'folder', images: 4, identities: 2 });
  const shifted = join(scratch, 'records');
  writeDataset(
    shifted,
    '20000000,112,112',
    [0, 1].map((i) => ({ label: i, jpeg: shippedJpeg(i) })),
  );
  const unlabelled = await facetrain('dataset', 'check', shifted);
  assert.equal(unlabelled.code, 2);
  assert.match(unlabelled.stderr, /property: 20000000 identities; .*dataset index \S+ --labels LIST writes it/);
  const list = join(scratch, 'faces.lst');
  await writeFile(list, '0\t16777217.000000\ta.jpg\n1\t3\tb.jpg\n');
  const labelled = await facetrain('dataset', 'index', shifted, '--labels', list);
  assert.equal(labelled.code, 0, labelled.stderr);
  assert.match(labelled.stdout, /Labels +\S+train\.labels\n +Layout +RecordIO\n +Pictures +2\n/);
  assert.match((await facetrain('dataset', 'check', shifted)).stdout, /labels 3 to 16777217/);
  const records = await facetrain('dataset', 'index', exampleFaces);
  assert.equal(records.code, 2);
  assert.match(records.stderr, /: is RecordIO, whose index is train\.idx; /);
  const refused = await facetrain('dataset', 'index', join(faces, 'person-0'));
  assert.equal(refused.code, 2);
  assert.match(refused.stderr, /person-0: has neither train\.rec, nor \*\.tar, nor folders of pictures/);
});
