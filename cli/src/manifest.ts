/** Reads manifests from a file: YAML or JSON, checked against the schema, with relative file:// paths made absolute. */
import { readFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { text } from 'node:stream/consumers';
import {
  FaceTrainJob,
  FacetrainError,
  fileCause,
  fileUri,
  jobTemplateProblem,
  parseDocument,
  parseStorageUri,
  QuantizeJob,
} from '@facetrain/api';
import { QUEUE_LABEL } from '@facetrain/planner/queue';
import { parseAllDocuments } from 'yaml';

export type Manifest = FaceTrainJob | QuantizeJob;

/** YAML aliases that a document may expand: nested ones grow exponentially and would fill the memory. */
const MAX_ALIASES = 100;

const SCHEMAS = { FaceTrainJob, QuantizeJob };

const refusal = (subject: string, found: string, allowed: string, cause?: unknown) =>
  new FacetrainError({ code: 'InvalidManifest', subject, found, allowed, cause });

/**
 * @returns every document of the file, defaults filled in
 * @throws FacetrainError InvalidManifest
 */
export async function readManifests(file: string): Promise<Manifest[]> {
  const documents = parseYaml(await readText(file), file);
  if (documents.length === 0) throw refusal(file, 'no document', 'one FaceTrainJob or QuantizeJob in YAML');
  return documents.map(({ where, value }) => parseManifest(value, where, dirname(resolve(file))));
}

/**
 * Checks what the operator checks when it creates pods: that each field of a pod template has an effect.
 * @throws FacetrainError InvalidManifest
 */
export function checkPodTemplates(manifests: Manifest[]): void {
  for (const { metadata, spec } of manifests) {
    const problem = jobTemplateProblem(spec);
    if (problem === null) continue;
    const colon = problem.indexOf(': ');
    throw refusal(`${metadata.name}: ${problem.slice(0, colon)}`, 'refused', problem.slice(colon + 2));
  }
}

/** What the API server accepts of a manifest, and still keeps the job from starting in some clusters. */
export function warningsOf({ metadata, spec }: Manifest): string[] {
  const queue = metadata.labels?.[QUEUE_LABEL];
  if (queue === undefined || spec.queue !== undefined) return [];
  return [
    `label ${QUEUE_LABEL}: ${queue}; where Kueue is installed, the job does not start (QueueNotSet): a queue is set ` +
      'by spec.queue.name',
  ];
}

/** The one FaceTrainJob of a file. @throws FacetrainError InvalidManifest, also for more than one document */
export async function readFaceTrainJob(file: string): Promise<FaceTrainJob> {
  const manifests = await readManifests(file);
  const [job] = manifests;
  if (manifests.length === 1 && job?.kind === 'FaceTrainJob') return job;
  throw refusal(file, manifests.map(({ kind }) => kind).join(', '), 'must hold exactly one FaceTrainJob');
}

/** `-` is standard input, as in kubectl. */
async function readText(file: string): Promise<string> {
  try {
    return file === '-' ? await text(process.stdin) : await readFile(file, 'utf8');
  } catch (cause) {
    const allowed = 'give the path of a manifest, such as examples/lfw-small/job.yaml';
    throw refusal(file, fileCause(cause), allowed, cause);
  }
}

interface Document {
  /** The file, and of several documents the number, for messages. */
  where: string;
  value: unknown;
}

/** The documents of a YAML stream (JSON is YAML) that are not empty. */
function parseYaml(text: string, file: string): Document[] {
  const documents = [...parseAllDocuments(text, { prettyErrors: true })].map((document, index, { length }) => {
    const where = length > 1 ? `${file} (document ${index + 1})` : file;
    const [error] = document.errors;
    if (error) throw refusal(where, firstLine(error), 'must be YAML', error);
    try {
      return { where, value: document.toJS({ maxAliasCount: MAX_ALIASES }) as unknown };
    } catch (cause) {
      throw refusal(where, firstLine(cause as Error), 'must be YAML', cause);
    }
  });
  return documents.filter(({ value }) => value !== null);
}

/** A YAML error in one line: what is wrong and where. The lines after it quote the file. */
const firstLine = ({ message }: Error) => message.split('\n', 1)[0]!.replace(/:$/, '');

/** @param folder that relative file:// paths start from */
function parseManifest(value: unknown, where: string, folder: string): Manifest {
  const { kind } = Object(value) as { kind?: unknown };
  if (typeof kind !== 'string' || !Object.hasOwn(SCHEMAS, kind)) {
    const found = kind === undefined ? 'missing' : JSON.stringify(kind);
    const otherKinds = typeof kind === 'string' ? '; keep other kinds in separate files' : '';
    throw refusal(`${where}: kind`, found, `must be one of ${Object.keys(SCHEMAS).join(', ')}${otherKinds}`);
  }
  return parseDocument(SCHEMAS[kind as Manifest['kind']], resolvePaths(value, folder), where, 'InvalidManifest');
}

/** Makes file:// paths relative to `folder` absolute, in every field called uri. */
function resolvePaths(value: unknown, folder: string): unknown {
  if (Array.isArray(value)) return value.map((element) => resolvePaths(element, folder));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, field]) => {
      if (key === 'uri' && typeof field === 'string' && field.startsWith('file://')) {
        const { path } = parseStorageUri(field) as { path: string };
        return [key, fileUri(resolve(folder, path))];
      }
      return [key, resolvePaths(field, folder)];
    }),
  );
}
