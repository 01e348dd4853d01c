// Which folder may import which. The tables below are the rules; the folders' READMEs give them in words.
// The checker itself is tested here too, on small made-up trees.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { importsOf, includesOf } from './lib/imports.mjs';
import { violations } from './lib/layer-check.mjs';
import { root } from './lib/paths.mjs';

/** Rooms of the trainers' program. */
const trainer = (...folders) => folders.map((folder) => `trainer-image/src/${folder}`);

/**
 * A row: a room, what it may import beside itself, and why, where that is not obvious. A room is a file, a folder with
 * all that is below it, or `folder/*`, the files right in a folder. For a file the row with the longest room counts.
 */
// biome-ignore format: one row a line
const ROOMS = [
  ['api',                      [], 'everything else imports it'],

  ['planner',                  ['api'], 'plans are pure: data in, data out'],
  ['planner/src/*',            ['api'], 'shared by both kinds of job'],
  ['planner/src/facetrainjob', ['planner/src/*', 'api']],
  ['planner/src/quantizejob',  ['planner/src/*', 'api']],
  ['planner/src/index.ts',     ['planner', 'api'], 'lists what the package exports'],

  ['operator',                 ['planner', 'api'], 'computes nothing: its image has no native code'],
  ['operator/src/runtime',     [], 'serves any operator: knows no job and no plan'],

  ['native/src',               ['api']],

  ['trainer-image',            ['native', 'api'], 'knows nothing of Kubernetes, planner and operator'],
  [...trainer('storage'),      ['api']],
  [...trainer('report'),       ['api']],
  [...trainer('program'),      [...trainer('storage'), 'native', 'api'], 'the same around every mode'],
  [...trainer('onnx'),         ['native', 'api']],
  [...trainer('backbones'),    [...trainer('onnx'), 'native', 'api']],
  [...trainer('estimate'),     [...trainer('onnx'), 'native', 'api'], 'pure: counts, before anything is allocated'],
  [...trainer('dataset'),      ['native', 'api']],
  [...trainer('verification'), ['native', 'api']],
  [...trainer('checkpoint'),   [...trainer('program', 'storage'), 'native', 'api'], 'read without training, too'],
  [...trainer('train'),        [...trainer('backbones', 'checkpoint', 'dataset', 'estimate', 'onnx', 'program',
                                           'report', 'storage', 'verification'), 'native', 'api']],
  [...trainer('quantize'),     [...trainer('dataset', 'onnx', 'program', 'report', 'storage', 'verification'),
                                'native', 'api']],

  ['cli',                      ['planner', 'trainer-image', 'native', 'api'], 'runs jobs without a cluster'],
  ['cli/src/kubectl',          ['cli', 'operator/src/runtime', 'planner', 'api'], 'the only room that knows a cluster'],
  ['install',                  ['api', 'planner', 'hack/lib/paths.mjs'], 'generates files of this repository'],
  ['install/generate.mjs',     ['install', 'hack/lib'], 'a script: npm run generate'],
  ['deploy/pulumi',            ['install', 'api']],
  ['bench',                    ['e2e', 'operator', 'planner', 'trainer-image', 'native', 'api']],
  ['e2e',                      ['operator', 'planner', ...trainer('checkpoint', 'storage', 'testing'), 'api']],
  ['hack',                     [], 'installs, builds and tests; knows no product'],
  ['hack/docs.test.mjs',       ['hack', 'api'], 'validates the manifests in Markdown'],
  ['hack/lib',                 [], 'below every script in hack/'],

  // C++. torch: <ATen/...>, <torch/...>, <c10/...>. napi: <napi.h>, with which addons use Node.
  ['native/clones.h',          []],
  ['native/counted.h',         []],
  ['native/error.h',           []],
  ['native/host_device.h',     [], 'compiles for CPUs and CUDA'],
  ['native/pixel_range.h',     []],
  ['native/random.h',          []],
  ['native/random_test.cc',    ['native/random.h']],
  ['native/available_memory.h', []],
  ['native/available_memory_test.cc', ['native/available_memory.h']],
  ['native/torch_error.h',     ['native/available_memory.h', 'native/error.h', 'torch']],
  ['native/torch_error_test.cc', ['native/torch_error.h', 'native/error.h', 'torch']],
  ['native/kernels',           ['native/clones.h', 'native/error.h'], 'builds without torch and Node'],
  ['native/nodes',             ['native/clones.h', 'native/counted.h', 'native/error.h', 'native/kernels'],
                               'ONNX operators: part of the library of int7'],
  ['native/int7',              ['native/error.h', 'native/kernels', 'native/nodes'],
                               'a library of its own: no torch, no Node, no names of files'],
  ['native/quant',             ['native/clones.h', 'native/counted.h', 'native/error.h', 'native/pixel_range.h',
                                'native/kernels', 'native/nodes', 'native/int7'],
                               'builds without torch and Node'],
  ['native/data',              ['native/counted.h', 'native/error.h', 'native/random.h'],
                               'builds without torch and Node'],
  ['native/comm',              ['native/error.h', 'native/torch_error.h', 'torch']],
  ['native/pfc',               ['native/clones.h', 'native/counted.h', 'native/error.h', 'native/host_device.h',
                                'native/precision.h', 'native/random.h', 'native/comm', 'torch']],
  ['native/model',             ['native/clones.h', 'native/counted.h', 'native/error.h', 'native/host_device.h',
                                'native/pixel_range.h', 'native/precision.h', 'native/torch_error.h', 'native/comm',
                                'torch']],
  ['native/train',             ['native/available_memory.h', 'native/error.h', 'native/precision.h', 'native/random.h',
                                'native/torch_error.h', 'native/comm', 'native/pfc', 'native/model', 'native/data',
                                'torch']],
  ['native/node',              ['native', 'torch', 'napi'], 'the only room that knows Node'],
  ['native/test',              ['native/data']],
  ['bench/common',             ['native', 'torch']],
  ['bench/pfc',                ['bench/common', 'native', 'torch']],
  ['bench/accuracy',           ['bench/common', 'trainer-image', 'native', 'torch']],
  ['bench/train',              ['bench/common', 'trainer-image', 'native', 'torch']],
];

/** What tests, fixtures and scripts of a package may import, beside their own package and what any of its rooms may. */
const TESTS = {
  '*': ['hack/lib/paths.mjs', 'hack/lib/free-ports.mjs'],
  cli: ['operator'],
  install: ['operator', 'trainer-image'],
  'deploy/pulumi': ['operator', 'install'],
};

/** Packages without I/O, clock and randomness: the modules of Node that they may import. */
const PURE = { api: [], planner: ['node:crypto', 'node:util'] };

const LAYERS = { rooms: ROOMS, tests: TESTS, pure: PURE };

/** All modules, C++ files and package.json of this repository that git tracks or would track, by their paths. */
function repository() {
  const listed = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', '-z'], {
    cwd: root,
    encoding: 'utf8',
  });
  const paths = listed
    .split('\0')
    .filter((path) => /\.(ts|mjs|cc|cu|cuh|h)$|(^|\/)package\.json$/.test(path) && existsSync(join(root, path)));
  return Object.fromEntries(paths.map((path) => [path, readFileSync(join(root, path), 'utf8')]));
}

test('imports go only the way that the tables allow', () => {
  assert.equal(violations(repository(), LAYERS).join('\n'), '');
});

test('every row of the tables is about files that exist', () => {
  const paths = Object.keys(repository());
  const named = [
    ...ROOMS.flatMap(([room, mayImport]) => [room, ...mayImport]),
    ...Object.keys(TESTS),
    ...Object.keys(PURE),
  ];
  const missing = named.filter(
    (room) =>
      !['torch', 'napi', '*'].includes(room) && !paths.some((path) => `${path}/`.startsWith(room.replace(/\*$/, ''))),
  );
  assert.deepEqual(missing, []);
});

describe('the checker', () => {
  const packageJson = (fields) =>
    JSON.stringify({ exports: { '.': './src/index.ts', './*': './src/*.ts' }, ...fields });
  /** A tree without violations; each case below replaces or adds files. */
  const clean = {
    'package.json': packageJson({ devDependencies: { 'fast-check': '1' } }),
    'shop/package.json': packageJson({
      name: '@x/shop',
      dependencies: { '@x/store': '1', zod: '1' },
      devDependencies: { chai: '1' },
    }),
    'shop/src/index.ts':
      "import { z } from 'zod';\nimport { shelf } from '@x/store/shelf';\nexport const a = shelf(z);",
    'shop/src/a.test.ts':
      "import 'fast-check'; import 'chai'; import './testing/b.ts'; import '@x/store'; import '../../paths.mjs';",
    'shop/src/testing/b.ts': "import 'node:fs';\nexport const b = 1;",
    'paths.mjs': '',
    'store/package.json': packageJson({ name: '@x/store' }),
    'store/src/shelf.ts': 'export const shelf = (x: unknown) => x;',
    'store/src/back/safe.ts': "import { shelf } from '../shelf.ts';\nimport { createHash } from 'node:crypto';",
    'native/plain/sum.cc': '#include <vector>\n#include "plain/sum.h"',
    'native/plain/sum.h': '#pragma once',
    'native/plain/sum_test.cc': '#include "test/check.h"\n#include "plain/sum.h"',
    'native/test/check.h': '',
    'native/tensor/use.cc': '#include <ATen/ATen.h>\n#include "plain/sum.h"',
  };
  const layers = {
    rooms: [
      ['shop', ['store/src/*'], 'sells from the shelf'],
      ['store', []],
      ['store/src/*', []],
      ['store/src/back', ['store/src/*']],
      ['native/plain', []],
      ['native/tensor', ['native/plain', 'torch']],
      ['native/test', []],
    ],
    tests: { '*': ['paths.mjs'], shop: ['store'] },
    pure: { store: ['node:crypto'] },
  };
  const cases = {
    'a package that may not be imported': [
      {
        'store/package.json': packageJson({ name: '@x/store', dependencies: { '@x/shop': '1' } }),
        'store/src/shelf.ts': "\nimport '@x/shop/till';",
      },
      'store/src/shelf.ts:2 imports shop/src/till.ts: store/src/* may import only itself',
    ],
    'a folder of a package that may not be imported': [
      { 'shop/src/index.ts': "export * from '@x/store/back/safe';" },
      'shop/src/index.ts:1 imports store/src/back/safe.ts: shop may import only store/src/* (sells from the shelf)',
    ],
    'a folder of the same package': [
      { 'store/src/shelf.ts': "import type { Safe } from './back/safe.ts';", 'store/src/back/safe.ts': '' },
      'store/src/shelf.ts:1 imports store/src/back/safe.ts: store/src/* may import only itself',
    ],
    'an import() in a template': [
      // biome-ignore lint/suspicious/noTemplateCurlyInString: the text of a file
      { 'shop/src/late.ts': "const a = `${await import('@x/store/back/safe')}`;\n" },
      'shop/src/late.ts:1 imports store/src/back/safe.ts: shop may import only store/src/* (sells from the shelf)',
    ],
    'an import() that cannot be read': [
      { 'shop/src/late.ts': "const a = await import('./' + name);" },
      'shop/src/late.ts:1 imports import(…): write the path as a string, so that it can be checked',
    ],
    'a testing folder in a program': [
      { 'shop/src/index.ts': "import { b } from './testing/b.ts';" },
      'shop/src/index.ts:1 imports shop/src/testing/b.ts: only tests, bench/ and e2e/ may import fixtures',
    ],
    'a test': [
      { 'shop/src/testing/c.ts': "import '../a.test.ts';" },
      'shop/src/testing/c.ts:1 imports shop/src/a.test.ts: tests are not imported',
    ],
    'a test of a package that its tests may not import': [
      {
        'store/package.json': packageJson({ name: '@x/store', devDependencies: { '@x/shop': '1' } }),
        'store/src/shelf.test.ts': "import '@x/shop';",
      },
      'store/src/shelf.test.ts:1 imports shop/src/index.ts: the tests of store may import only store and paths.mjs',
    ],
    'a package that package.json does not list': [
      { 'shop/src/index.ts': "import pino from 'pino/file';" },
      'shop/src/index.ts:1 imports pino/file: shop/package.json lists no pino in its dependencies',
    ],
    'a development package in a program': [
      { 'shop/src/index.ts': "import 'chai';" },
      'shop/src/index.ts:1 imports chai: shop/package.json lists no chai in its dependencies',
    ],
    'a package that a test does not list': [
      { 'shop/src/a.test.ts': "import '@a/b/x';" },
      'shop/src/a.test.ts:1 imports @a/b/x: shop/package.json lists no @a/b in its dependencies or devDependencies',
    ],
    'I/O in a pure package': [
      { 'store/src/shelf.ts': "import { readFile } from 'node:fs/promises';" },
      'store/src/shelf.ts:1 imports node:fs/promises: store is pure: of Node it may import only node:crypto',
    ],
    'a file outside every room': [
      { 'yard/a.mjs': "import '../shop/src/index.ts';" },
      'yard/a.mjs:1 imports shop/src/index.ts: yard/a.mjs is in no room of the table',
    ],
    'torch where it may not be': [
      { 'native/plain/sum.cc': '/* #include <x>\n */\n#  include <c10/util/Exception.h>' },
      'native/plain/sum.cc:3 imports c10/util/Exception.h: native/plain may import only itself',
    ],
    'torch in a test of such a folder': [
      { 'native/plain/sum_test.cc': '#include <torch/torch.h>' },
      'native/plain/sum_test.cc:1 imports torch/torch.h: native/plain may import only itself',
    ],
    'Node where it may not be': [
      { 'native/tensor/use.cc': '#include <napi.h>' },
      'native/tensor/use.cc:1 imports napi.h: native/tensor may import only native/plain and torch',
    ],
    'a header of a folder above': [
      { 'native/plain/sum.cc': '#include "tensor/use.h"', 'native/tensor/use.h': '' },
      'native/plain/sum.cc:1 imports native/tensor/use.h: native/plain may import only itself',
    ],
    'a header beside the file, without its folder': [
      { 'native/plain/sum.cc': '#include "../tensor/use.h"', 'native/tensor/use.h': '' },
      'native/plain/sum.cc:1 imports native/tensor/use.h: native/plain may import only itself',
    ],
    'a header for tests in a program': [
      { 'native/plain/sum.cc': '#include "test/check.h"' },
      'native/plain/sum.cc:1 imports native/test/check.h: only tests, bench/ and e2e/ may import fixtures',
    ],
    'a cycle': [
      {
        'shop/src/a.ts': "import type { B } from './b.ts';",
        'shop/src/b.ts': "export { c } from './c.ts';",
        'shop/src/c.ts': "import { a } from './a.ts';",
      },
      'shop/src/a.ts -> shop/src/b.ts -> shop/src/c.ts -> shop/src/a.ts: files may not import each other in a cycle',
    ],
    'a file that imports itself': [
      { 'shop/src/a.ts': "export * from './a.ts';" },
      'shop/src/a.ts -> shop/src/a.ts: files may not import each other in a cycle',
    ],
    'a cycle of headers': [
      { 'native/plain/a.h': '#include "plain/b.h"', 'native/plain/b.h': '#include "plain/a.h"' },
      'native/plain/a.h -> native/plain/b.h -> native/plain/a.h: files may not import each other in a cycle',
    ],
  };

  test('passes a tree that keeps the rules', () => {
    assert.deepEqual(violations(clean, layers), []);
  });
  for (const [title, [files, expected]] of Object.entries(cases)) {
    test(`finds ${title}`, () => {
      assert.deepEqual(violations({ ...clean, ...files }, layers), [expected]);
    });
  }
});

describe('the reader of imports', () => {
  const specifiers = (source) => importsOf(source).map(({ specifier, line }) => `${line} ${specifier}`);

  test('finds each form of import with its line', () => {
    const source = [
      "import a, { type B } from 'a';",
      "import 'b';",
      'import * as c from "c"; import d from \'d\'',
      'import {',
      '  e,',
      "} from 'e';",
      "export * from 'f'; export * as g from 'g'; export { h } from 'h'; export type { I } from 'i';",
      "type J = import('j').J; const k = () => import('k');",
      "import json from './l.json' with { type: 'json' };",
    ].join('\n');
    assert.deepEqual(specifiers(source), [
      '1 a',
      '2 b',
      '3 c',
      '3 d',
      '4 e',
      '7 f',
      '7 g',
      '7 h',
      '7 i',
      '8 j',
      '8 k',
      '9 ./l.json',
    ]);
  });

  test('is not misled by comments, strings, templates and regular expressions', () => {
    const source = [
      "// import 'a';",
      "/* import 'b';",
      '*/ const text = "import \'c\'";',
      // biome-ignore lint/suspicious/noTemplateCurlyInString: the text of a file
      "const template = `import 'd'; ${call({ text: `}` })} import 'e'`;",
      "const regex = /[/'`]/; const half = 1 / 2; import 'f';",
      "if (/import 'g'/.test(x) || y) import.meta.resolve('h');",
      "const object = { import: 'i', from: 'j' }; object.import('k');",
      "export const from = 'l'; export type T = 'm'; export { from };",
      "const ratio = (a + b) / c; import 'n'; const after = d / e;",
      "const escaped = '\\''; import \"o\";",
    ].join('\n');
    assert.deepEqual(specifiers(source), ['5 f', '9 n', '10 o']);
  });

  test('finds includes outside of comments', () => {
    const source = '#include <a.h>\n// #include <b.h>\n/*\n#include <c.h>\n*/\n  # include "d/e.h" // f\n';
    assert.deepEqual(includesOf(source), [
      { path: 'a.h', line: 1 },
      { path: 'd/e.h', line: 6 },
    ]);
  });
});
