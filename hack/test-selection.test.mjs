// Which tests `npm test -- ...` chooses, and what it answers to a name that does not exist.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { repositoryFiles } from './lib/files.mjs';
import * as needs from './lib/needs.mjs';
import { versions } from './lib/paths.mjs';
import { isTest, select } from './lib/test-selection.mjs';

const files = [
  'api/src/crd.test.ts',
  'e2e/facetrain.test.ts',
  'e2e/soak/soak.test.ts',
  'hack/layers.test.mjs',
  'native/kernels/kernels_test.cc',
  'native/pfc/margin_test.cc',
  'native/src/data.test.ts',
  'planner/src/facetrainjob/gang.test.ts',
  'planner/src/failure.test.ts',
];
const nothing = { lint: false, arm64: false, cuda: false, fuzz: false, native: [], node: [], e2e: [], all: false };

const cases = {
  'no name: every suite': [
    {},
    {
      lint: true,
      arm64: true,
      cuda: true,
      fuzz: true,
      native: ['native/kernels/kernels_test.cc', 'native/pfc/margin_test.cc'],
      node: files.filter((file) => /\.test\./.test(file) && file !== 'e2e/facetrain.test.ts'),
      e2e: ['e2e/facetrain.test.ts'],
      all: true,
    },
  ],
  'lint alone': [{ only: 'lint' }, { lint: true }],
  'the C library on 64-bit ARM alone': [{ only: 'arm64' }, { arm64: true }],
  'the build for CUDA alone': [{ only: 'cuda' }, { cuda: true }],
  'the fuzzer alone': [{ only: 'fuzz' }, { fuzz: true }],
  'the suite native: ctest': [
    { only: 'native' },
    { native: ['native/kernels/kernels_test.cc', 'native/pfc/margin_test.cc'] },
  ],
  'the folder native/: ctest and node:test': [
    { only: 'native/' },
    { native: ['native/kernels/kernels_test.cc', 'native/pfc/margin_test.cc'], node: ['native/src/data.test.ts'] },
  ],
  'a folder of e2e needs no cluster': [{ names: ['e2e/soak'] }, { node: ['e2e/soak/soak.test.ts'] }],
  'the suite e2e': [{ only: 'e2e' }, { e2e: ['e2e/facetrain.test.ts'] }],
  'a folder': [{ only: 'planner' }, { node: ['planner/src/facetrainjob/gang.test.ts', 'planner/src/failure.test.ts'] }],
  'a folder below': [{ only: './planner/src/facetrainjob/' }, { node: ['planner/src/facetrainjob/gang.test.ts'] }],
  'a file of each runner': [
    { names: ['native/pfc/margin_test.cc', 'api/src/crd.test.ts', 'e2e/facetrain.test.ts'] },
    { native: ['native/pfc/margin_test.cc'], node: ['api/src/crd.test.ts'], e2e: ['e2e/facetrain.test.ts'] },
  ],
  'a program of ctest': [{ names: ['kernels_test'] }, { native: ['native/kernels/kernels_test.cc'] }],
  'a file that is named twice': [{ names: ['api', 'api/src/crd.test.ts'] }, { node: ['api/src/crd.test.ts'] }],
  'files within a suite': [{ only: 'node', names: ['native/'] }, { node: ['native/src/data.test.ts'] }],
  'a pattern in a folder': [{ only: 'native/', pattern: 'x' }, { node: ['native/src/data.test.ts'] }],
  'a pattern in e2e': [{ only: 'e2e', pattern: 'x' }, { e2e: ['e2e/facetrain.test.ts'] }],
  'a pattern alone: no cluster is started': [
    { pattern: 'x' },
    { node: files.filter((file) => /\.test\./.test(file) && file !== 'e2e/facetrain.test.ts') },
  ],
};
for (const [title, [chosen, expected]] of Object.entries(cases)) {
  test(`chooses ${title}`, () => assert.deepEqual(select(files, chosen), { ...nothing, ...expected }));
}

const refusals = {
  'a suite or folder that does not exist': [
    { only: 'pfc' },
    /^pfc: no such test.*suites {4}lint native arm64 cuda fuzz node e2e\n.*planner\/src\n/s,
  ],
  'a file that does not exist': [{ names: ['api/src/nothing.test.ts'] }, /^api\/src\/nothing.test.ts: no such test/],
  'a file in the wrong folder, with the right one': [
    { names: ['planner/src/gang.test.ts'] },
    /no such test. There are\n\n {4}planner\/src\/facetrainjob\/gang.test.ts$/,
  ],
  "the start of a folder's name": [{ only: 'plan' }, /^plan: no such test/],
  'a file outside of --only': [
    { only: 'native', names: ['api/src/crd.test.ts'] },
    /^api\/src\/crd.test.ts: not among the tests of native$/,
  ],
  'a pattern for ctest': [{ only: 'native', pattern: 'x' }, /^-t x: only tests of node:test have names/],
};
for (const [title, [chosen, message]] of Object.entries(refusals)) {
  test(`refuses ${title}`, () => assert.throws(() => select(files, chosen), { message }));
}

test('hack/lib/needs.mjs has an entry for every folder with tests, and names only what can be installed', async () => {
  const steps = ['native', 'arm64', 'clang', 'llvm-mca', 'cuda-compile-only', 'linters', 'python'];
  for (const file of (await repositoryFiles()).filter(isTest)) needs.ofFile(file);
  const unknown = [...needs.tests, ...needs.armBenchmark, ...needs.operatorBenchmark].filter(
    (name) => !steps.includes(name) && !Object.hasOwn(versions.goTools, name),
  );
  assert.deepEqual(unknown, []);
});

test('hack/lib/needs.mjs has only paths with tests', async () => {
  const tests = (await repositoryFiles()).filter(isTest);
  const unused = Object.keys(needs.paths).filter(
    (path) => !tests.some((file) => file === path || file.startsWith(`${path}/`)),
  );
  assert.deepEqual(unused, []);
});

test('the longest path of hack/lib/needs.mjs decides what a test needs', () => {
  assert.deepEqual(needs.ofFile('trainer-image/src/train/train.test.ts'), needs.paths['trainer-image']);
  assert.deepEqual(needs.ofFile('trainer-image/src/train/schedule.test.ts'), ['native']);
  assert.deepEqual(needs.ofFile('trainer-image/src/train/start-times.test.ts'), []);
});
