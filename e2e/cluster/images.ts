/**
 * The images that a cluster runs. The Docker engine of this machine builds them from package registries; no image is
 * pulled.
 */
import { existsSync } from 'node:fs';
import { cp, mkdir, mkdtemp, readFile, rename, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { cache, root } from '../../hack/lib/paths.mjs';
import { command } from './command.ts';

const { version } = JSON.parse(await readFile(join(root, 'operator', 'package.json'), 'utf8')) as { version: string };
/** The chart's defaults. */
export const OPERATOR_IMAGE = `facetrain/operator:${version}`;
export const TRAINER_IMAGE = `facetrain/trainer:${version}`;
/** With CUDA. No node loads it: nodes here have no GPU. */
export const CUDA_TRAINER_IMAGE = `${TRAINER_IMAGE}-cuda`;
export const NODE_IMAGE = 'facetrain/node:dev';
/** Keeps a pod's network namespace ("pause"). DNS and the object store run in it too, with programs of the node. */
export const PAUSE_IMAGE = 'facetrain/pause:latest';
const BASE_IMAGE = 'facetrain/base:bookworm';
const TRAINER_DOCKERFILE = 'trainer-image/Dockerfile';
const TRUST = '/etc/ssl/certs/ca-certificates.crt';

/** An image of Debian 12: FACETRAIN_BASE_IMAGE names one; where it is not set, debootstrap makes one. */
async function baseImage(): Promise<string> {
  const given = process.env.FACETRAIN_BASE_IMAGE;
  if (given) return given;
  if (await imageId(BASE_IMAGE)) return BASE_IMAGE;
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-base-'));
  try {
    await command(['debootstrap', '--variant=minbase', '--include=ca-certificates', 'bookworm', folder]);
    // Half of the image's size, and not used in a container.
    const unused = [
      'var/cache/apt',
      'var/lib/apt/lists',
      'usr/share/doc',
      'usr/share/man',
      'usr/share/locale',
      'var/log',
    ];
    for (const path of unused) await command(['find', join(folder, path), '-mindepth', '1', '-delete']);
    // The certificates that this machine trusts: its package registries may be mirrors with their own certificates.
    await cp(TRUST, join(folder, TRUST));
    const environment = ['NODE_EXTRA_CA_CERTS', 'PIP_CERT', 'SSL_CERT_FILE']
      .map((name) => `${name}=${TRUST}`)
      .join(' ');
    await command([
      'sh',
      '-c',
      `tar -C "$1" -c . | docker import --change "ENV ${environment}" - ${BASE_IMAGE}`,
      'sh',
      folder,
    ]);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
  return BASE_IMAGE;
}

/** Builds all images; Docker caches unchanged steps. @param onStep is called with each step that is not cached */
export async function buildImages(onStep: (step: string) => void): Promise<void> {
  onStep('building images');
  const base = await baseImage();
  await build(base, 'operator/Dockerfile', root, OPERATOR_IMAGE, onStep);
  await build(base, TRAINER_DOCKERFILE, root, TRAINER_IMAGE, onStep);
  const node = join(import.meta.dirname, 'node');
  await build(base, join(node, 'Dockerfile'), node, NODE_IMAGE, onStep);
  await command([
    'sh',
    '-c',
    `printf 'FROM ${base}\\nCMD ["sleep", "infinity"]\\n' | docker build --tag ${PAUSE_IMAGE} -`,
  ]);
}

/** Builds the trainers' image for GPUs. @returns its size in bytes */
export async function buildCudaTrainerImage(onStep: (step: string) => void): Promise<number> {
  await build(await baseImage(), TRAINER_DOCKERFILE, root, CUDA_TRAINER_IMAGE, onStep, ['--target', 'cuda']);
  return Number(await command(['docker', 'image', 'inspect', '--format', '{{.Size}}', CUDA_TRAINER_IMAGE]));
}

async function build(
  base: string,
  dockerfile: string,
  context: string,
  tag: string,
  onStep: (step: string) => void,
  options: string[] = [],
): Promise<void> {
  await command(
    [
      await buildkit(),
      'build',
      '--progress=plain',
      '--build-arg',
      `BASE_IMAGE=${base}`,
      '--file',
      dockerfile,
      '--tag',
      tag,
      ...options,
      context,
    ],
    {
      env: { DOCKER_BUILDKIT: '1' },
      onLine: stepsThatRun((step) => onStep(`${tag} ${step}`)),
      cwd: root,
    },
  );
}

/**
 * Reads BuildKit's plain output: `#7 [2/5] RUN …` is the title of step 7, `#7 0.41 …` a line that it has written. A
 * cached step writes none.
 * @param onStep is called with a step's title at its first line
 */
function stepsThatRun(onStep: (step: string) => void): (line: string) => void {
  const titles = new Map<string, string>();
  return (line) => {
    const [, id, text] = /^#(\d+) (.*)/.exec(line) ?? [];
    if (id === undefined) return;
    if (text!.startsWith('[')) titles.set(id, text!);
    else if (/^\d/.test(text!) && titles.has(id)) {
      onStep(titles.get(id)!);
      titles.delete(id);
    }
  };
}

/** The first Docker client that can use BuildKit: from version 23 on it needs buildx, before it does not. */
async function buildkit(): Promise<string> {
  for (const client of ['docker', '/usr/bin/docker']) {
    const version = await command([client, 'version', '--format', '{{.Client.Version}}']).catch(() => '');
    if (version === '') continue;
    if (Number.parseInt(version, 10) < 23) return client;
    if (
      await command([client, 'buildx', 'version']).then(
        () => true,
        () => false,
      )
    )
      return client;
  }
  throw new Error(
    'no docker client here can use BuildKit: install the package docker-buildx-plugin (or docker.io of Debian 12)',
  );
}

/**
 * Saves an image to an archive, once for each build of it, and removes the archives of earlier builds.
 * @returns the file's name in `archives`
 */
export async function archive(image: string): Promise<string> {
  const id = await imageId(image);
  if (!id) throw new Error(`${image} is not built`);
  const name = `${image.replace(/[/:]/g, '-')}-${id.slice(7, 19)}.tar`;
  const file = join(archives, name);
  if (!existsSync(file)) {
    await mkdir(archives, { recursive: true });
    // Other processes may do the same.
    const part = `${file}.${process.pid}`;
    const older = 'find "$1" -name "$2-*" ! -name "$3*" -delete';
    await command(['sh', '-c', older, 'sh', archives, image.replace(/[/:]/g, '-'), name]);
    await command(['docker', 'save', '--output', part, image]);
    await rename(part, file);
  }
  return name;
}

/** The folder with the archives, which every node mounts at /opt/images. */
export const archives = join(cache, 'images');

async function imageId(image: string): Promise<string | null> {
  const id = await command(['docker', 'image', 'inspect', '--format', '{{.Id}}', image]).catch(() => '');
  return id.trim() || null;
}
