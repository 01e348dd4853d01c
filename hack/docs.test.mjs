// Checks of all Markdown: links, paths of files, and manifests.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path/posix';
import { test } from 'node:test';
import { FaceTrainJob, QuantizeJob } from '@facetrain/api';
import { parse } from 'yaml';
import { repositoryFiles } from './lib/files.mjs';
import { root } from './lib/paths.mjs';

const files = await repositoryFiles();
const known = new Set(files.flatMap((file) => [file, ...foldersOf(file)]));
const pages = Object.fromEntries(
  files.filter((file) => file.endsWith('.md')).map((file) => [file, readFileSync(join(root, file), 'utf8')]),
);
const topFolders = new Set(files.filter((file) => file.includes('/')).map((file) => file.split('/')[0]));

function foldersOf(file) {
  const folder = dirname(file);
  return folder === '.' ? [] : [folder, ...foldersOf(folder)];
}

/** Without blocks of code. */
const prose = (text) => text.replaceAll(/^```[\s\S]*?^```$/gm, '');

/** As GitHub makes them. */
const anchorsOf = (text) =>
  [...prose(text).matchAll(/^#+ (.+)$/gm)].map(([, heading]) =>
    heading
      .toLowerCase()
      .replaceAll(/[^\w\- ]/g, '')
      .replaceAll(' ', '-'),
  );

test('every relative link leads to a file, and its anchor to a heading', () => {
  const broken = [];
  for (const [page, text] of Object.entries(pages)) {
    for (const [, target, anchor] of prose(text)
      .replaceAll(/`[^`\n]*`/g, '')
      .matchAll(/\]\(([^)#\s]*)(?:#([^)\s]+))?\)/g)) {
      if (/^[a-z]+:/.test(target)) continue;
      const file = target === '' ? page : join(dirname(page), target).replace(/\/$/, '');
      const exists = known.has(file) && (anchor === undefined || anchorsOf(pages[file] ?? '').includes(anchor));
      if (!exists) broken.push(`${page}: ${target}${anchor === undefined ? '' : `#${anchor}`}`);
    }
  }
  assert.deepEqual(broken, []);
});

test('every path in code type from the top of the repository exists', () => {
  // Where builds and benchmarks write, and what the recipes of CONTRIBUTING.md add.
  const madeLater = /^(native\/build|[^/]+\/dist|bench\/NAME|planner\/src\/attempt-limit)|\/NAME\.ts$/;
  const missing = [];
  for (const [page, text] of Object.entries(pages)) {
    for (const [, path] of prose(text).matchAll(/`([\w.-]+(?:\/[\w.-]+)+\/?)`/g)) {
      const file = path.replace(/\/$/, '');
      if (topFolders.has(file.split('/')[0]) && !known.has(file) && !madeLater.test(file))
        missing.push(`${page}: ${path}`);
    }
  }
  assert.deepEqual(missing, []);
});

test('every manifest is valid', () => {
  const schemas = { FaceTrainJob, QuantizeJob };
  const refused = [];
  let count = 0;
  for (const [page, text] of Object.entries(pages)) {
    const blocks = [...text.matchAll(/^```yaml\n([\s\S]*?)^```$/gm)].map(([, block]) => block);
    for (const document of blocks.flatMap((block) => block.split(/^---$/m))) {
      const schema = /^kind: /m.test(document) ? schemas[parse(document).kind] : undefined;
      if (!schema) continue;
      count += 1;
      for (const { path, message } of schema.safeParse(parse(document)).error?.issues ?? [])
        refused.push(`${page}: ${path.join('.')}: ${message}`);
    }
  }
  assert.deepEqual(refused, []);
  assert(count > 0);
});

test('the table of permissions in SECURITY.md is the one of the chart', () => {
  const [operators] = readFileSync(join(root, 'charts/facetrain/templates/rbac.yaml'), 'utf8').split('rbac.userRoles');
  const rules = operators.matchAll(/resources: \[(.+)\]\n(?: +resourceNames: .+\n)? +verbs: \[(.+)\]/g);
  const rows = pages['SECURITY.md'].matchAll(/^\| (`[a-z/`, ]+`)[^|]*\| ([a-z, ]+) \|/gm);
  const pairs = (matches, quoted) =>
    [...matches]
      .flatMap(([, resources, verbs]) => resources.split(', ').map((resource) => `${resource}: ${verbs}`))
      .map((pair) => (quoted ? pair.replaceAll('`', '') : pair))
      .sort();
  assert.deepEqual(pairs(rows, true), pairs(rules, false));
});
