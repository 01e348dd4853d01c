import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { customResourceDefinitions, ERROR_CODES, FaceTrainJob, QuantizeJob } from '@facetrain/api';
import { ConditionType, Reason } from '@facetrain/planner/reasons';
import { parse } from 'yaml';
import { root } from '../../hack/lib/paths.mjs';
import { CONDITIONS, changesOf, fieldsOf, referenceFiles, type SchemaNode, schemaOf } from './api-reference.ts';

const examples = join(root, 'docs', 'reference', 'examples');
const readExample = (name: string) => parse(readFileSync(join(examples, name), 'utf8'));
const definitions = Object.values(customResourceDefinitions());
const pages = referenceFiles();

test('the pages on disk are as generated', () => {
  for (const [path, content] of Object.entries(pages))
    assert.equal(readFileSync(join(root, path), 'utf8'), content, `${path}: run npm run generate`);
});

test('every example is valid', () => {
  const files = readdirSync(examples);
  assert.equal(files.length, 4);
  for (const file of files) {
    const manifest = readExample(file);
    const schema = manifest.kind === 'FaceTrainJob' ? FaceTrainJob : QuantizeJob;
    assert.deepEqual(schema.safeParse(manifest).error?.issues ?? [], [], file);
  }
});

/**
 * A model is either built from a backbone, as in the example, or read from an ONNX file. A margin has the parameters of
 * its type; the example has Combined. A topology is either required, as in the example, or preferred. A queue is that
 * of Kueue, as in the example, or of the gang's scheduler.
 */
const EXCLUDED = /^spec\.(model\.(onnx|input)|loss\.margin\.[mh]|gang\.(topology\.preferred|queue))\b/;

for (const definition of definitions) {
  const { kind, singular } = definition.spec.names;
  const { spec, status } = schemaOf(definition);
  const fields = fieldsOf(spec, 'spec');

  test(`${kind}: the full example sets every field`, () => {
    const set = pathsIn(readExample(`${singular}-full.yaml`).spec, 'spec');
    const missing = fields.map(({ path }) => path).filter((path) => !set.has(path) && !EXCLUDED.test(path));
    assert.deepEqual(missing, []);
  });

  test(`${kind}: the minimal example sets required fields, and the choice of a model, alone`, () => {
    const paths = [...pathsIn(readExample(`${singular}-minimal.yaml`).spec, 'spec')];
    const isOptional = (path: string) => !fields.find((field) => field.path === path)!.isRequired;
    assert.deepEqual(paths.filter(isOptional), kind === 'FaceTrainJob' ? ['spec.model.backbone'] : []);
  });

  test(`${kind}: every field of spec and status has a description`, () => {
    const undescribed = [...fields, ...fieldsOf(status, 'status')].filter(
      ({ node }) => !(node.description ?? node.items?.description),
    );
    assert.deepEqual(
      undescribed.map(({ path }) => path),
      [],
    );
  });

  test(`${kind}: the page has a row for every field`, () => {
    const page = pages[`docs/reference/${singular}.md`]!;
    for (const { path } of [...fields, ...fieldsOf(status, 'status')])
      assert(page.includes(`| \`${path}\` |`) || page.includes(`| [\`${path}\`](#`), path);
  });
}

test('what may change is read from the rules on oldSelf', () => {
  const { spec } = schemaOf(definitions.find(({ spec }) => spec.names.kind === 'FaceTrainJob')!);
  const change = changesOf(spec, 'spec');
  const want = {
    'spec.epochs': 'while suspended',
    'spec.loss.margin.m1': 'while suspended',
    'spec.trainers': 'by field',
    'spec.trainers.replicas': 'while suspended',
    'spec.trainers.image': 'any time',
    'spec.model.numClasses': 'while suspended',
    'spec.model.embeddingDim': 'never',
    'spec.output.uri': 'never',
    'spec.checkpoint': 'by field',
    'spec.checkpoint.uri': 'never',
    'spec.checkpoint.keep': 'any time',
    'spec.managedBy': 'never',
    'spec.activeDeadlineSeconds': 'any time',
  };
  assert.deepEqual(Object.fromEntries(Object.keys(want).map((path) => [path, change(path)])), want);
});

test('a rule on changes in an unknown form is refused: its field would be called free to change', () => {
  const node: SchemaNode = {
    type: 'object',
    'x-kubernetes-validations': [{ rule: 'self.a < oldSelf.a', message: 'a must shrink' }],
    properties: { a: { type: 'integer' } },
  };
  assert.throws(() => changesOf(node, 'spec'), /spec: .*self\.a < oldSelf\.a/);
});

test('the page of conditions has every condition and reason of the planner', () => {
  assert.deepEqual(Object.keys(CONDITIONS).sort(), Object.values(ConditionType).sort());
  const page = pages['docs/reference/conditions.md']!;
  // These are words of the operator's log.
  const elsewhere = new Set<string>([
    Reason.adopted,
    Reason.attemptOver,
    Reason.jobDeleted,
    Reason.notWanted,
    Reason.expired,
  ]);
  for (const reason of [...Object.values(Reason), ...ERROR_CODES])
    assert.equal(page.includes(`\`${reason}\``), !elsewhere.has(reason), reason);
});

test('links lead to headings and files that exist', () => {
  for (const [path, content] of Object.entries(pages)) {
    for (const [, target, anchor] of content.replaceAll(/`[^`\n]*`/g, '').matchAll(/\]\(([^)#]*)(?:#([^)]+))?\)/g)) {
      const file = target === '' ? path : join(dirname(path), target!);
      assert(existsSync(join(root, file)), `${path}: ${file}`);
      const text = pages[file] ?? readFileSync(join(root, file), 'utf8');
      if (anchor) assert(anchorsIn(text).includes(anchor), `${path}: ${target}#${anchor}`);
    }
  }
});

/** As GitHub makes them; no two in a file may be equal. */
function anchorsIn(markdown: string): string[] {
  const anchors = [...markdown.matchAll(/^#+ (.+)$/gm)].map(([, heading]) =>
    heading!
      .toLowerCase()
      .replace(/[^\w\- ]/g, '')
      .replaceAll(' ', '-'),
  );
  assert.equal(new Set(anchors).size, anchors.length);
  return anchors;
}

/** Paths of all fields that a value sets, as fieldsOf writes them. */
function pathsIn(value: unknown, path: string): Set<string> {
  if (Array.isArray(value)) return new Set(value.flatMap((entry) => [...pathsIn(entry, `${path}[]`)]));
  if (typeof value !== 'object' || value === null) return new Set();
  return new Set(
    Object.entries(value).flatMap(([name, child]) => [`${path}.${name}`, ...pathsIn(child, `${path}.${name}`)]),
  );
}
