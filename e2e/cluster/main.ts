/** `npm run cluster -- up | kubeconfig | down`: a cluster that stays when this process ends. */
import { existsSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { cache, tools } from '../../hack/lib/paths.mjs';
import { Cluster } from './cluster.ts';
import { command } from './command.ts';
import { buildImages } from './images.ts';
import { createNamespace, installAll } from './install-facetrain.ts';

const NAME = 'facetrain';
const folder = join(cache, 'cluster');
const kubeconfig = join(folder, 'kubeconfig');
/** An empty file, written when everything is installed. */
const complete = join(folder, 'complete');
const print = (text: string) => process.stderr.write(`${text}\n`);

async function up(): Promise<void> {
  if (existsSync(complete) && (await containers({ running: true })).length > 0) {
    print(`There is a cluster already (npm run cluster -- down removes it).`);
  } else {
    if (existsSync(folder) || (await containers()).length > 0) {
      print('an earlier cluster was left unfinished, or its containers have ended: removing it');
      await down();
    }
    await buildImages(print);
    print('starting the cluster');
    const cluster = await Cluster.start({ name: NAME, folder });
    await installAll(cluster, print);
    await createNamespace(cluster, 'demo');
    await cluster.client.close();
    await writeFile(complete, '');
  }
  print(`
Ready. Try:

  export KUBECONFIG=${kubeconfig} PATH=${tools}:$PATH
  kubectl -n demo apply -k examples/lfw-small
  kubectl -n demo get facetrainjobs -w
`);
}

/** Ids of the containers that are its nodes. */
async function containers({ running = false } = {}): Promise<string[]> {
  const list = await command([
    'docker',
    'ps',
    ...(running ? [] : ['--all']),
    '--quiet',
    '--filter',
    `name=^${NAME}-(control-plane|worker)`,
  ]);
  return list.split('\n').filter(Boolean);
}

async function down(): Promise<void> {
  const ids = await containers();
  if (ids.length > 0) await command(['docker', 'rm', '--force', '--volumes', ...ids]);
  await rm(folder, { recursive: true, force: true });
}

const actions: Record<string, () => Promise<void> | void> = {
  up,
  down,
  kubeconfig() {
    if (!existsSync(complete)) throw new Error('there is no cluster: npm run cluster -- up');
    process.stdout.write(`${kubeconfig}\n`);
  },
};

const action = actions[process.argv[2] ?? ''];
if (!action) {
  print('Usage: npm run cluster -- up | kubeconfig | down');
  process.exitCode = 2;
} else {
  try {
    await action();
  } catch (error) {
    print((error as Error).message);
    process.exitCode = 1;
  }
}
