// Writes what is generated and checked in: `npm run generate`. With --check nothing is written, and a stale file is an error.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { stringify } from 'yaml';
import { customResourceDefinitions } from '@facetrain/api';
import { root } from './lib/paths.mjs';
import { SetupError, main } from './lib/steps.mjs';

/** Every generated file by its path in the repository. */
function files() {
  const crds = Object.entries(customResourceDefinitions()).map(([name, definition]) => [
    join('crds', name),
    `# Generated from api/ by \`npm run generate\`; do not edit.\n${stringify(definition, { lineWidth: 120, aliasDuplicateObjects: false })}`,
  ]);
  return Object.fromEntries(crds);
}

await main(() => {
  const check = process.argv.includes('--check');
  const stale = Object.entries(files()).filter(([path, content]) => {
    const file = join(root, path);
    if (existsSync(file) && readFileSync(file, 'utf8') === content) return false;
    if (!check) {
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, content);
      process.stderr.write(`${path}: written\n`);
    }
    return true;
  });
  if (check && stale.length > 0) throw new SetupError(`not as generated: ${stale.map(([path]) => path).join(', ')}; run npm run generate`);
});
