// Finds the imports that break the rules of hack/layers.test.mjs. It reads no files: their text is its argument.
import { dirname, join } from 'node:path/posix';
import { importsOf, includesOf } from './imports.mjs';

/** Libraries of C++ that the table names, by the paths of their headers. */
const NATIVE_LIBRARIES = { torch: /^(ATen|torch|c10)\//, napi: /^(napi|node_api|js_native_api|uv|v8)[.\-/]/ };

/** The name of an `import()` whose argument is no string. */
const COMPUTED = 'import(…)';

const isModule = (path) => /\.(ts|mjs)$/.test(path);
const isTestFile = (path) => /\.test\.(ts|mjs)$|_test\.cc$/.test(path);
/** Code that tests share. */
const isFixture = (path) => /(^|\/)(testing|native\/test)\//.test(path);
/** Code that no image and no package holds: tests, fixtures, bench/, e2e/, hack/, and scripts such as bundle.mjs. */
const isDevelopment = (path) =>
  isTestFile(path) || isFixture(path) || /^(bench|e2e|hack)\//.test(path) || /^[^/]+\/[^/]+\.mjs$/.test(path);

/** A room is a file, a folder with all that is below it, or (`folder/*`) the files right in a folder. */
function holds(room, path) {
  if (room.endsWith('/*')) return dirname(path) === room.slice(0, -2);
  return path === room || path.startsWith(`${room}/`);
}

/**
 * @typedef {object} Layers
 * @property {[room: string, mayImport: string[], why?: string][]} rooms for a file the row with the longest room
 *   counts; every room may import itself
 * @property {Record<string, string[]>} tests what the tests of a package may import, beside their own package and
 *   what any of its rooms may; `*` for all packages
 * @property {Record<string, string[]>} pure packages without I/O: the modules of Node that they may import
 *
 * @param {Record<string, string>} tree the text of each file by its path: modules, C++, and every package.json
 * @param {Layers} layers
 * @returns {string[]} one message for each import that breaks a rule: file, line, what it imports, the rule
 */
export function violations(tree, layers) {
  const found = [];
  const packages = readPackages(tree);
  const graph = new Map();
  for (const path of Object.keys(tree).sort()) {
    const edges = isModule(path)
      ? moduleEdges(path, tree[path], packages)
      : /\.(cc|cu|cuh|h)$/.test(path)
        ? includeEdges(path, tree[path], tree)
        : [];
    graph.set(
      path,
      edges.flatMap(({ target }) => (target !== undefined && target in tree ? [target] : [])),
    );
    for (const edge of edges) {
      const rule = brokenRule(path, edge, layers, packages);
      if (rule !== undefined) found.push(`${path}:${edge.line} imports ${edge.target ?? edge.name}: ${rule}`);
    }
  }
  return [
    ...found,
    ...cycles(graph).map((files) => `${files.join(' -> ')}: files may not import each other in a cycle`),
  ];
}

/** The workspaces and the repository's root (folder ''), from their package.json. */
function readPackages(tree) {
  return Object.keys(tree)
    .filter((path) => path === 'package.json' || path.endsWith('/package.json'))
    .map((path) => {
      const { name, exports = {}, dependencies, peerDependencies, devDependencies = {} } = JSON.parse(tree[path]);
      const folder = path === 'package.json' ? '' : dirname(path);
      return { folder, name, exports, dependencies: { ...dependencies, ...peerDependencies }, devDependencies };
    });
}

const packageOf = (path, packages) =>
  packages
    .filter(({ folder }) => folder === '' || path.startsWith(`${folder}/`))
    .sort((a, b) => b.folder.length - a.folder.length)[0];

/**
 * @typedef {object} Edge
 * @property {number} line
 * @property {string} name as it is written
 * @property {string} [target] the file of this repository that it means
 * @property {string} [dependency] the npm package
 * @property {string} [library] the library of C++ that the table names
 */

/** @returns {Edge[]} */
function moduleEdges(path, source, packages) {
  return importsOf(source).map(({ specifier, line }) => {
    if (specifier === null) return { line, name: COMPUTED };
    if (specifier.startsWith('.')) return { line, name: specifier, target: join(dirname(path), specifier) };
    if (specifier.startsWith('node:')) return { line, name: specifier };
    const dependency = specifier.split('/', specifier.startsWith('@') ? 2 : 1).join('/');
    const workspace = packages.find(({ folder, name }) => folder !== '' && name === dependency);
    if (!workspace) return { line, name: specifier, dependency };
    const rest = specifier.slice(dependency.length + 1);
    const file = rest === '' ? workspace.exports['.'] : workspace.exports['./*']?.replace('*', rest);
    // A path that the package does not export has no file; TypeScript reports it.
    return { line, name: specifier, dependency, target: join(workspace.folder, file ?? rest) };
  });
}

/** @returns {Edge[]} */
function includeEdges(path, source, tree) {
  return includesOf(source).map(({ path: included, line }) => {
    // native/ is the one folder that the compiler searches (CMakeLists.txt).
    const target = [join('native', included), join(dirname(path), included)].find((candidate) => candidate in tree);
    const library = Object.keys(NATIVE_LIBRARIES).find((name) => NATIVE_LIBRARIES[name].test(included));
    return target ? { line, name: included, target } : { line, name: included, library };
  });
}

/** @returns {string | undefined} the rule that an import breaks */
function brokenRule(path, edge, layers, packages) {
  if (edge.name === COMPUTED) return 'write the path as a string, so that it can be checked';
  return (
    testRule(path, edge) ??
    dependencyRule(path, edge, packages) ??
    pureRule(path, edge, layers.pure) ??
    roomRule(path, edge, layers, packages)
  );
}

function testRule(path, { target }) {
  if (target === undefined) return undefined;
  if (isTestFile(target)) return 'tests are not imported';
  return isFixture(target) && !isDevelopment(path) ? 'only tests, bench/ and e2e/ may import fixtures' : undefined;
}

/** Tests may use what the root declares for all workspaces; scripts of the root may use the workspaces themselves. */
function dependencyRule(path, { dependency }, packages) {
  const own = packageOf(path, packages);
  if (dependency === undefined || dependency === own.name || dependency in own.dependencies) return undefined;
  const sections = isDevelopment(path) ? 'dependencies or devDependencies' : 'dependencies';
  if (isDevelopment(path)) {
    const root = packages.find(({ folder }) => folder === '');
    if (dependency in own.devDependencies || dependency in root.devDependencies) return undefined;
    if (own === root && packages.some(({ name }) => name === dependency)) return undefined;
  }
  return `${join(own.folder, 'package.json')} lists no ${dependency} in its ${sections}`;
}

function pureRule(path, { name }, pure) {
  const room = Object.keys(pure).find((each) => holds(each, path));
  if (!name.startsWith('node:') || room === undefined || isDevelopment(path) || pure[room].includes(name))
    return undefined;
  return `${room} is pure: of Node it may import only ${list(pure[room])}`;
}

function roomRule(path, { target, library }, { rooms, tests }, packages) {
  const imported = library ?? target;
  if (imported === undefined) return undefined;
  const row = rooms.filter(([room]) => holds(room, path)).sort(([a], [b]) => b.length - a.length)[0];
  if (row === undefined) return `${path} is in no room of the table`;
  const [room, mayImport, why] = row;
  const allowed = (names) => names.some((name) => name === library || (target !== undefined && holds(name, target)));

  const { folder } = packageOf(path, packages);
  if (isModule(path) && isDevelopment(path) && folder !== '') {
    const ofPackage = rooms.flatMap(([each, may]) => (holds(folder, each) ? may : []));
    const others = [...ofPackage, ...(tests['*'] ?? []), ...(tests[folder] ?? [])].filter(
      (name) => !holds(folder, name),
    );
    const names = [...new Set([folder, ...others])];
    return allowed(names) ? undefined : `the tests of ${folder} may import only ${list(names)}`;
  }
  // A test program in C++ is linked with the libraries of its folder alone.
  if (allowed([room, ...mayImport]) || (target !== undefined && isFixture(target))) return undefined;
  return `${room} may import only ${list(mayImport) || 'itself'}${why ? ` (${why})` : ''}`;
}

const list = (names) => (names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`);

/** Every group of files that reach each other (Tarjan's strongly connected components), as one cycle through each. */
function cycles(graph) {
  const index = new Map();
  const low = new Map();
  const stack = [];
  const found = [];
  const visit = (file) => {
    index.set(file, index.size);
    low.set(file, index.get(file));
    stack.push(file);
    for (const next of graph.get(file) ?? []) {
      if (!index.has(next)) {
        visit(next);
        low.set(file, Math.min(low.get(file), low.get(next)));
      } else if (stack.includes(next)) low.set(file, Math.min(low.get(file), index.get(next)));
    }
    if (low.get(file) !== index.get(file)) return;
    const group = stack.splice(stack.indexOf(file));
    if (group.length > 1 || graph.get(file).includes(file)) found.push(cycleThrough(file, new Set(group), graph));
  };
  for (const file of graph.keys()) if (!index.has(file)) visit(file);
  return found;
}

/** The shortest path from `start` back to itself inside `group`. */
function cycleThrough(start, group, graph) {
  let paths = [[start]];
  const seen = new Set();
  for (;;) {
    const longer = [];
    for (const path of paths) {
      for (const next of graph.get(path.at(-1))) {
        if (next === start) return [...path, start];
        if (!group.has(next) || seen.has(next)) continue;
        seen.add(next);
        longer.push([...path, next]);
      }
    }
    paths = longer;
  }
}
