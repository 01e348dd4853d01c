// Which tests `npm test` runs. Pure: the files of the repository and the command line's arguments in, a selection out.
import { basename, dirname, posix } from 'node:path';
import { SetupError } from './steps.mjs';

/** The suites, in the order in which they run. */
export const SUITES = ['lint', 'native', 'arm64', 'cuda', 'fuzz', 'node', 'e2e'];

/** The suites without files: checks of the whole repository. */
const CHECKS = ['lint', 'arm64', 'cuda', 'fuzz'];

/** The suite that a test file belongs to. What is in folders of e2e/ starts no containers. */
const suiteOf = (file) => (file.endsWith('_test.cc') ? 'native' : /^e2e\/[^/]+$/.test(file) ? 'e2e' : 'node');

export const isTest = (file) => /\.test\.(ts|mjs)$|_test\.cc$/.test(file);

/** The name that ctest has for a test program. */
export const programOf = (file) => basename(file, '.cc');

/**
 * @typedef {object} Selection
 * @property {boolean} lint
 * @property {boolean} arm64 the C library is built for 64-bit ARM, and its tests run in an emulator
 * @property {boolean} cuda the code for CUDA is compiled and linked
 * @property {boolean} fuzz damaged models are read under sanitizers
 * @property {string[]} native the chosen files `*_test.cc`
 * @property {string[]} node the chosen files of node:test that need no Docker
 * @property {string[]} e2e those that do
 * @property {boolean} all nothing was chosen: every suite runs
 *
 * @param {string[]} files all test files, relative to the repository
 * @param {{ only?: string, names?: string[], pattern?: string }} chosen `only` and `names`: suites, folders, files, or
 *   programs of ctest; of `names` those within `only`. `pattern`: only tests of node:test whose name matches
 * @returns {Selection}
 * @throws SetupError for a name that stands for no test, with the names that exist
 */
export function select(files, { only, names = [], pattern } = {}) {
  const everything = [...files, ...CHECKS];
  const within = only === undefined ? everything : testsOf(only, files);
  const chosen =
    names.length === 0 ? within : [...new Set(names.flatMap((name) => narrowed(name, only, within, files)))];
  const of = (suite) => chosen.filter((test) => !CHECKS.includes(test) && suiteOf(test) === suite);
  const selection = {
    lint: chosen.includes('lint'),
    arm64: chosen.includes('arm64'),
    cuda: chosen.includes('cuda'),
    fuzz: chosen.includes('fuzz'),
    native: of('native'),
    node: of('node'),
    e2e: of('e2e'),
    all: only === undefined && names.length === 0 && pattern === undefined,
  };
  if (pattern === undefined) return selection;
  // A test of e2e/ starts a cluster first: it runs only where it was asked for.
  const e2e = only === undefined && names.length === 0 ? [] : selection.e2e;
  if (selection.node.length + e2e.length === 0)
    throw new SetupError(`-t ${pattern}: only tests of node:test have names, and none of their files is chosen`);
  return { ...selection, lint: false, arm64: false, cuda: false, fuzz: false, native: [], e2e };
}

function narrowed(name, only, within, files) {
  const tests = testsOf(name, files).filter((test) => within.includes(test));
  if (tests.length === 0) throw new SetupError(`${name}: not among the tests of ${only}`);
  return tests;
}

/** The tests that a name stands for: files, or the name of a check. `native` is the suite, `native/` the folder. */
function testsOf(name, files) {
  if (CHECKS.includes(name)) return [name];
  if (SUITES.includes(name)) return files.filter((file) => suiteOf(file) === name);
  const path = posix.normalize(name).replace(/\/$/, '');
  const tests = files.filter(
    (file) => file === path || file.startsWith(`${path}/`) || (suiteOf(file) === 'native' && programOf(file) === name),
  );
  if (tests.length > 0) return tests;
  throw new SetupError(`${name}: no such test. There are\n\n${known(name, files)}`);
}

/** What could have been meant: the files with a similar name, else the suites and folders. */
function known(name, files) {
  const word = basename(name)
    .split('.')[0]
    .replace(/_test$/, '')
    .toLowerCase();
  const similar = files.filter((file) => word.length > 2 && basename(file).toLowerCase().includes(word));
  if (similar.length > 0) return similar.map((file) => `    ${file}`).join('\n');
  const folders = [...new Set(files.flatMap(parents))].sort();
  return `    suites    ${SUITES.join(' ')}\n    folders   ${folders.join('\n              ')}`;
}

function parents(file) {
  const folder = dirname(file);
  return folder === '.' ? [] : [...parents(folder), folder];
}
