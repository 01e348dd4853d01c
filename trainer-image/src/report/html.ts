/** Parts of both HTML reports: the page, light and dark, in one file; tables; numbers as text. Pure. */

export function page(title: string, style: string, body: string): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeHtml(title)}</title>
<style>${STYLE}${style}</style>
</head>
<body>
<main>
${body}
</main>
</body>
</html>
`;
}

/** A table. Headings and cells are HTML, not text. */
export function table(headings: string[], rows: string[][]): string {
  const head = headings.map((heading) => `<th>${heading}</th>`).join('');
  const body = rows.map((row) => `<tr>${row.map((cell) => `<td>${cell}</td>`).join('')}</tr>`).join('\n');
  return `<div class="wide"><table><thead><tr>${head}</tr></thead>\n<tbody>${body}</tbody></table></div>`;
}

export interface GroupRow {
  set: string;
  group: string;
  pairs: number;
  /** One for each heading of the table. */
  figures: string[];
}

/** Figures by group of pairs, under the headings given. Texts, not HTML; nothing where no set has groups. */
export function groupTable(headings: string[], rows: GroupRow[], note: string): string {
  if (rows.length === 0) return '';
  const all = table(
    ['Set', 'Group', 'Pairs', ...headings],
    rows.map(({ set, group, pairs, figures }) => [set, group, count(pairs), ...figures].map(escapeHtml)),
  );
  return `<h3>By group <small>${note}</small></h3>\n${all}`;
}

/** A share in percent; a dash for null, such as a rate of pairs that there are none of. */
export function percent(share: number | null): string {
  return share === null ? '–' : `${(share * 100).toFixed(2)} %`;
}

/** Four significant digits. */
export function short(value: number): string {
  const rounded = Number(value.toPrecision(4));
  return Math.abs(rounded) >= 1e6 ? rounded.toExponential() : rounded.toString();
}

export function count(value: number): string {
  return value.toLocaleString('en-US');
}

export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

const STYLE = `
:root {
  color-scheme: light dark; --ink: #1b1f24; --soft: #606a76; --line: #d9dee4; --paper: #fff; --card: #f5f7f9;
  --c0: #0b63ce; --c1: #c2410c; --c2: #15803d; --c3: #7e22ce; --c4: #b45309; --c5: #0e7490;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6eaee; --soft: #9aa5b1; --line: #333b44; --paper: #14181c; --card: #1d2329; --c0: #6cb0ff;
    --c1: #ff9a63; --c2: #63d08a; --c3: #cf9bff; --c4: #f4c04e; --c5: #5cc9de;
  }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 800px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { margin: 0; font-size: 26px; overflow-wrap: anywhere; }
h2 { margin: 36px 0 8px; font-size: 18px; }
h3 { margin: 16px 0 4px; font-size: 15px; }
small, .sub, dt, summary { color: var(--soft); font-weight: normal; }
small { font-size: 13px; }
.sub { margin: 2px 0 20px; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 8px; margin: 0; }
dl div { background: var(--card); border-radius: 8px; padding: 8px 12px; }
dt { font-size: 12px; }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin-top: 8px; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: normal; }
`;
