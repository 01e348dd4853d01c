// Writes the generated files that are checked in: `npm run generate`. --check writes nothing; a stale file is an error.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { customResourceDefinitions } from '@facetrain/api';
import { referenceFiles } from '@facetrain/install/api-reference';
import { chartFiles, deployFiles, gitOpsFiles } from '@facetrain/install/generate';
import { HelmError } from '@facetrain/install/helm';
import { stringify } from 'yaml';
import { root } from './lib/paths.mjs';
import { main, SetupError } from './lib/steps.mjs';

const HEADER = '# Generated from api/ by `npm run generate`; do not edit.\n';

function crdFiles() {
  const crds = Object.entries(customResourceDefinitions()).map(([name, definition]) => [
    join('crds', name),
    HEADER + stringify(definition, { lineWidth: 120, aliasDuplicateObjects: false }),
  ]);
  return Object.fromEntries(crds);
}

await main(async () => {
  const check = process.argv.includes('--check');
  const stale = [];
  const write = (files) => {
    for (const [path, content] of Object.entries(files)) {
      const file = join(root, path);
      if (existsSync(file) && readFileSync(file, 'utf8') === content) continue;
      stale.push(path);
      if (check) continue;
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, content);
      process.stderr.write(`${path}: written\n`);
    }
  };
  write({ ...crdFiles(), ...chartFiles(), ...gitOpsFiles(), ...referenceFiles() });
  // Rendered from the chart as it stands now, so it comes after it.
  write(
    await deployFiles().catch((error) => {
      throw error instanceof HelmError ? new SetupError(error.message) : error;
    }),
  );
  if (check && stale.length > 0) throw new SetupError(`not as generated: ${stale.join(', ')}; run npm run generate`);
});
