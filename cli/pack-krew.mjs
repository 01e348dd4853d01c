/**
 * Packs `kubectl facetrain` for krew: `npm run krew` writes facetrain.tar.gz, one bundle of JavaScript for all
 * platforms, and facetrain.yaml, its manifest with the archive's address and digest. The same sources give the same
 * bytes.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmod, copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { build } from 'esbuild';
import { root } from '../hack/lib/paths.mjs';

const USAGE = `Usage: npm run krew [-- --out FOLDER] [--address URL]

--out FOLDER    for facetrain.tar.gz and facetrain.yaml (default: dist/krew)
--address URL   where the archive will be (default: where the file is now)
`;

const NAME = 'facetrain';

async function bundle(folder) {
  await build({
    entryPoints: { 'kubectl-facetrain': join(root, 'cli', 'src', 'kubectl-facetrain.ts') },
    outdir: join(folder, 'bin'),
    bundle: true,
    // What a command alone needs, such as the client of object stores, is a chunk that only this command loads.
    splitting: true,
    format: 'esm',
    platform: 'node',
    target: 'node24',
    // Opens a dataset of this machine, which no job of a cluster has.
    external: ['@facetrain/native'],
    // The bundled CommonJS packages call require.
    banner: { js: "import { createRequire } from 'node:module';\nconst require = createRequire(import.meta.url);" },
    logLevel: 'warning',
  });
  // krew links the program under a name without an extension: its folder says that it is a module.
  await writeFile(join(folder, 'package.json'), `${JSON.stringify({ type: 'module', private: true })}\n`);
  await chmod(join(folder, 'bin', 'kubectl-facetrain.js'), 0o755);
  await copyFile(join(root, 'LICENSE'), join(folder, 'LICENSE'));
}

async function archive(folder, file) {
  const same = ['--sort=name', '--mtime=@0', '--owner=0', '--group=0', '--numeric-owner', '--mode=go=rX,u+rw'];
  const make = ['--use-compress-program=gzip -n', '--create', '--file', file, '--directory', folder, '.'];
  execFileSync('tar', [...same, ...make], { stdio: 'inherit' });
  return createHash('sha256')
    .update(await readFile(file))
    .digest('hex');
}

const { values } = parseArgs({
  options: { out: { type: 'string' }, address: { type: 'string' }, help: { type: 'boolean', short: 'h' } },
});
if (values.help) process.stdout.write(USAGE);
else {
  const out = resolve(values.out ?? join(root, 'dist', 'krew'));
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-krew-'));
  try {
    await bundle(folder);
    await mkdir(out, { recursive: true });
    const file = join(out, `${NAME}.tar.gz`);
    const digest = await archive(folder, file);
    const template = await readFile(join(import.meta.dirname, 'krew', `${NAME}.yaml`), 'utf8');
    const { version } = JSON.parse(await readFile(join(root, 'cli', 'package.json'), 'utf8'));
    // Comments of the template speak of itself.
    const manifest = template
      .replace(/^#.*\n/gm, '')
      .replaceAll('VERSION', `v${version}`)
      .replaceAll('ADDRESS', values.address ?? `file://${file}`)
      .replaceAll('SHA256', digest);
    await writeFile(join(out, `${NAME}.yaml`), manifest);
    process.stdout.write(`${file}\n${join(out, `${NAME}.yaml`)}\n`);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
