// Finds the imports of TypeScript and JavaScript modules, and the includes of C++ files. It has its own tokenizer:
// the JavaScript API of TypeScript 7 is marked unstable, and esbuild drops imports of types.

/** A `/` after one of these words starts a regular expression, not a division. */
const BEFORE_REGEX = new Set([
  'await',
  'case',
  'delete',
  'do',
  'else',
  'in',
  'of',
  'return',
  'typeof',
  'void',
  'yield',
]);
const WORD = /[\p{ID_Start}$_#@][\p{ID_Continue}$]*/uy;
const NUMBER = /\d[\w.]*/y;
const STRING = /'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"/sy;
const REGEX = /\/(?:[^/\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+\/[a-z]*/y;
const COMMENT = /\/\/[^\n]*|\/\*.*?\*\//sy;
const TEMPLATE_TEXT = /(?:[^`\\$]|\\.|\$(?!\{))*/sy;

/**
 * The tokens of a module: words, strings (without their quotes) and single punctuation marks, each with its line.
 * Comments, regular expressions, numbers and the text of templates are left out; the code in `${}` is not.
 * @param {string} source
 * @returns {{ kind: 'word' | 'string' | 'mark', text: string, line: number }[]}
 */
function tokens(source) {
  const found = [];
  /** One entry for each brace that is open: whether it is the `${` of a template. */
  const braces = [];
  let at = 0;
  let line = 1;
  let previous = '';
  const take = (pattern) => {
    pattern.lastIndex = at;
    const text = pattern.exec(source)?.[0];
    if (text !== undefined) at += text.length;
    return text;
  };
  const lines = (text) => {
    line += text.split('\n').length - 1;
  };
  const add = (kind, text) => {
    found.push({ kind, text, line });
    previous = kind === 'string' ? 'value' : text;
  };
  const template = () => {
    lines(take(TEMPLATE_TEXT));
    if (source.startsWith('${', at)) {
      braces.push(true);
      at += 2;
      previous = '{';
    } else {
      at += 1; // the closing backtick
      previous = 'value';
    }
  };
  const startsRegex = () =>
    /[\w$]/.test(previous) ? BEFORE_REGEX.has(previous) : previous !== ')' && previous !== ']';

  while (at < source.length) {
    const character = source[at];
    if (/\s/.test(character)) {
      if (character === '\n') line += 1;
      at += 1;
      continue;
    }
    let text = take(COMMENT);
    if (text !== undefined) {
      lines(text);
      continue;
    }
    text = take(STRING);
    if (text !== undefined) {
      add('string', text.slice(1, -1));
      lines(text);
      continue;
    }
    if (character === '/' && startsRegex() && take(REGEX) !== undefined) {
      previous = 'value';
      continue;
    }
    if (take(NUMBER) !== undefined) {
      previous = 'value';
      continue;
    }
    text = take(WORD);
    if (text !== undefined) {
      add('word', text);
      continue;
    }
    at += 1;
    if (character === '`') {
      template();
      continue;
    }
    if (character === '{') braces.push(false);
    if (character === '}' && braces.pop()) {
      template();
      continue;
    }
    add('mark', character);
  }
  return found;
}

/**
 * Finds `import`, `import type`, `export ... from` and `import()`, also where that is a type.
 * @param {string} source
 * @returns {{ specifier: string | null, line: number }[]} `specifier` is null for an `import()` of an expression
 */
export function importsOf(source) {
  const all = tokens(source);
  const imports = [];
  /** The string after the next `from`, if it comes before the statement ends. */
  const from = (start) => {
    for (let i = start; i < all.length && all[i].text !== ';'; i += 1) {
      if (all[i].kind === 'word' && all[i].text === 'from' && all[i + 1]?.kind === 'string') return all[i + 1].text;
      // Only names stand between `import` or `export` and `from`.
      if (all[i].kind === 'mark' && !['{', '}', ',', '*'].includes(all[i].text)) return undefined;
    }
    return undefined;
  };
  for (const [i, { kind, text, line }] of all.entries()) {
    if (kind !== 'word' || all[i - 1]?.text === '.') continue;
    const next = all[i + 1];
    if (text === 'import' && next?.kind === 'string') imports.push({ specifier: next.text, line });
    else if (text === 'import' && next?.text === '(') {
      const whole = all[i + 2]?.kind === 'string' && [')', ','].includes(all[i + 3]?.text);
      imports.push({ specifier: whole ? all[i + 2].text : null, line });
    } else if (text === 'import' || (text === 'export' && ['{', '*', 'type'].includes(next?.text))) {
      const specifier = from(i + 1);
      if (specifier !== undefined) imports.push({ specifier, line });
    }
  }
  return imports;
}

/**
 * The includes of a C++ file.
 * @param {string} source
 * @returns {{ path: string, line: number }[]}
 */
export function includesOf(source) {
  const code = source.replace(/\/\*.*?\*\//gs, (comment) => comment.replace(/[^\n]/g, ' '));
  return code.split('\n').flatMap((text, i) => {
    const include = /^\s*#\s*include\s*["<]([^">]+)[">]/.exec(text);
    return include ? [{ path: include[1], line: i + 1 }] : [];
  });
}
