/**
 * Bundles the program of the operator's image: `node operator/bundle.mjs FOLDER` writes main.mjs and the chunks that it
 * loads.
 */
import { join } from 'node:path';
import { build } from 'esbuild';

const [folder] = process.argv.slice(2);
if (folder === undefined) throw new Error('usage: node operator/bundle.mjs FOLDER');
await build({
  entryPoints: [join(import.meta.dirname, 'src', 'main.ts')],
  outdir: folder,
  outExtension: { '.js': '.mjs' },
  bundle: true,
  // The kubeconfig library becomes a separate chunk, which no pod loads. Nothing is minified, so that stack traces
  // stay readable.
  splitting: true,
  format: 'esm',
  platform: 'node',
  target: 'node24',
  // The bundled CommonJS packages call require.
  banner: { js: "import { createRequire } from 'node:module';\nconst require = createRequire(import.meta.url);" },
  logLevel: 'warning',
});
