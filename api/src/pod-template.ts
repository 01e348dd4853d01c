/**
 * What a `podTemplate` must not contain: fields that Facetrain sets itself, and fields where no pod template has any. A
 * field of the template is honored or refused, never dropped without a word.
 *
 * The CustomResourceDefinition keeps every field of a template, so that nothing is pruned before the operator sees it.
 * The operator checks a template when it creates pods, and `facetrain validate` at once. Unknown fields inside `spec`
 * are refused by the API server when the pod is created.
 */
import { isPlainObject } from './plain-object.ts';

type Loose = Record<string, unknown>;

interface Template extends Loose {
  metadata?: Loose | undefined;
  spec?: Loose | undefined;
}

/** What else of a job's pods a template may contradict. */
export interface PodOfJob {
  /** Trainers have host names and a PodGroup of Facetrain's; a quantizer has not. */
  isTrainer: boolean;
  /** `image` beside the template. */
  image?: string | undefined;
  /** `resources` beside the template. */
  resources?: Loose | undefined;
  /** Environment variables that Facetrain sets. */
  env: readonly string[];
}

/** Environment variables that Facetrain sets in the container of a trainer: torchrun's, and its configuration. */
export const TRAINER_ENV = [
  'RANK',
  'WORLD_SIZE',
  'LOCAL_RANK',
  'MASTER_ADDR',
  'MASTER_PORT',
  'FACETRAIN_CONFIG',
] as const;
/** Beside TRAINER_ENV, of a trainer's pod with several ranks. */
const SEVERAL_RANKS_ENV = ['LOCAL_WORLD_SIZE'] as const;
/** The same for the quantizer. */
export const QUANTIZER_ENV = ['FACETRAIN_CONFIG'] as const;

/** What else is set from `s3.secretRef` of the quantizer's output: by keys of the Secret, which have the same names. */
export const S3_CREDENTIALS_ENV = ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN'] as const;

/** The output of a quantizer, as far as its pod's environment depends on it. */
export interface QuantizerOutput {
  uri?: string;
  s3?: { secretRef?: object | undefined } | undefined;
}

/** Name of the container that runs Facetrain's program, in every pod. */
export const FACETRAIN_CONTAINER = 'facetrain';

const METADATA_FIELDS = new Set(['labels', 'annotations']);
/** Fields of an ObjectMeta that a template may have in Kubernetes, and that would have no effect here. */
const OBJECT_FIELDS = new Set(['name', 'namespace', 'generateName', 'finalizers', 'ownerReferences']);
const OWN_PREFIX = 'facetrain.dev/';
const OWN_LABEL = 'app.kubernetes.io/managed-by';

const asLoose = (value: unknown): Loose => (isPlainObject(value) ? value : {});
const asList = (value: unknown): Loose[] => (Array.isArray(value) ? value.filter(isPlainObject) : []);

/**
 * The first field of a template that would have no effect, as a message: path below the template, what it does, what to
 * do. null if every field has its effect.
 */
export function podTemplateProblem(template: Template | undefined, job: PodOfJob): string | null {
  if (template === undefined) return null;
  return misplaced(template) ?? metadataProblem(asLoose(template.metadata)) ?? specProblem(asLoose(template.spec), job);
}

/**
 * The same for a job, with the path from its root.
 * @param path of the fields: spec.trainers, spec.quantizer or spec.quantize.quantizer
 * @param output of a quantizer; undefined where it needs no credentials
 */
export function podFieldsProblem(
  path: string,
  {
    image,
    resources,
    podTemplate,
    ranksPerPod = 1,
  }: {
    image?: string | undefined;
    resources?: object | undefined;
    podTemplate?: object | undefined;
    ranksPerPod?: number | undefined;
  },
  output?: QuantizerOutput,
): string | null {
  const isTrainer = path === 'spec.trainers';
  const gpus = ranksPerPod > 1 ? gpuProblem(resources, podTemplate, ranksPerPod) : null;
  if (gpus !== null) return `${path}.${gpus}`;
  const trainerEnv = [...TRAINER_ENV, ...(ranksPerPod > 1 ? SEVERAL_RANKS_ENV : [])];
  const problem = podTemplateProblem(podTemplate as Template | undefined, {
    isTrainer,
    image,
    resources: asLoose(resources),
    env: isTrainer ? trainerEnv : [...QUANTIZER_ENV, ...(output?.s3?.secretRef ? S3_CREDENTIALS_ENV : [])],
  });
  return problem === null ? null : `${path}.podTemplate.${problem}`;
}

/** The resource of whole GPUs, by every vendor's device plugin: nvidia.com/gpu, amd.com/gpu. */
const GPUS = /^[^/]+\/gpu$/;

/** Each rank takes the GPU of its number: too few leave ranks without one, and of too many some are idle. */
function gpuProblem(resources: unknown, podTemplate: unknown, ranks: number): string | null {
  const containers = asList(asLoose(asLoose(podTemplate).spec).containers);
  const index = containers.findIndex(({ name }) => name === FACETRAIN_CONTAINER);
  const places = [
    { path: 'resources.limits', limits: asLoose(resources).limits },
    {
      path: `podTemplate.spec.containers[${index}].resources.limits`,
      limits: asLoose(containers[index]?.resources).limits,
    },
  ];
  for (const { path, limits } of places)
    for (const [name, amount] of Object.entries(asLoose(limits)))
      if (GPUS.test(name) && String(amount) !== String(ranks))
        return `${path}: ${name} is ${String(amount)}, and a pod has ${ranks} ranks, each with a GPU: ask for ${ranks}`;
  return null;
}

/** The first such field of a whole job; null if there is none. */
export function jobTemplateProblem({
  trainers,
  quantizer,
  quantize,
  output,
}: {
  trainers?: object | undefined;
  quantizer?: object | undefined;
  quantize?: { quantizer: object; output?: QuantizerOutput | undefined } | undefined;
  output?: QuantizerOutput | undefined;
}): string | null {
  return (
    (trainers ? podFieldsProblem('spec.trainers', trainers) : null) ??
    (quantizer ? podFieldsProblem('spec.quantizer', quantizer, output) : null) ??
    (quantize ? podFieldsProblem('spec.quantize.quantizer', quantize.quantizer, quantize.output ?? output) : null)
  );
}

function misplaced(template: Template): string | null {
  for (const field of Object.keys(template)) {
    if (field === 'metadata' || field === 'spec') continue;
    const place = METADATA_FIELDS.has(field) ? 'metadata' : 'spec';
    return `${field}: a pod template has only metadata and spec; move it to ${place}.${field}`;
  }
  return null;
}

function metadataProblem(metadata: Loose): string | null {
  for (const [field, value] of Object.entries(metadata)) {
    // Generated templates have "creationTimestamp: null".
    if (METADATA_FIELDS.has(field) || value === null) continue;
    return OBJECT_FIELDS.has(field)
      ? `metadata.${field}: Facetrain names its pods and owns them; remove it`
      : `metadata.${field}: a pod template's metadata has labels and annotations here; remove it`;
  }
  for (const field of METADATA_FIELDS)
    for (const key of Object.keys(asLoose(metadata[field])))
      if (key.startsWith(OWN_PREFIX) || (field === 'labels' && key === OWN_LABEL))
        return `metadata.${field}: Facetrain sets ${key} itself; remove it`;
  return null;
}

function specProblem(spec: Loose, job: PodOfJob): string | null {
  const { restartPolicy } = spec;
  if (restartPolicy !== undefined && restartPolicy !== 'Never')
    return `spec.restartPolicy: ${String(restartPolicy)}; must be Never: failurePolicy decides what starts again`;
  if (job.isTrainer)
    for (const field of ['hostname', 'subdomain', 'schedulingGroup'])
      if (spec[field] !== undefined)
        return `spec.${field}: Facetrain sets it, so that ranks find each other; remove it`;
  const security = asLoose(spec.securityContext);
  if (security.runAsNonRoot === false)
    return 'spec.securityContext.runAsNonRoot: false; no program of Facetrain runs as root; remove it';
  const { type } = asLoose(security.seccompProfile);
  if (type === 'Unconfined')
    return 'spec.securityContext.seccompProfile.type: Unconfined; RuntimeDefault and Localhost are allowed';
  const containers = asList(spec.containers);
  const index = containers.findIndex(({ name }) => name === FACETRAIN_CONTAINER);
  const second = containers.findIndex(({ name }, other) => name === FACETRAIN_CONTAINER && other > index);
  if (index >= 0 && second >= 0) return `spec.containers[${second}].name: a second container facetrain; remove one`;
  const problem = index < 0 ? null : containerProblem(containers[index]!, job);
  return problem === null ? null : `spec.containers[${index}].${problem}`;
}

/** Fields of Facetrain's container that are always its own, with the reason. */
const OWN_FIELDS: Record<string, string> = {
  args: 'Facetrain sets the arguments of its program. A wrapper goes into command, which gets them as its own',
  terminationMessagePath: 'Facetrain’s programs write their last message to /dev/termination-log; remove it',
  restartPolicy: 'Facetrain sets it, because failurePolicy decides which ranks the kubelet restarts; remove it',
  restartPolicyRules:
    'Facetrain sets them, because failurePolicy decides which ranks the kubelet restarts; remove them',
};

function containerProblem(container: Loose, { image, resources = {}, env }: PodOfJob): string | null {
  for (const [field, reason] of Object.entries(OWN_FIELDS))
    if (container[field] !== undefined) return `${field}: ${reason}`;
  if (image !== undefined && container.image !== undefined && container.image !== image)
    return `image: ${String(container.image)}, and the image beside podTemplate is ${image}; set one of them`;
  for (const field of ['limits', 'requests']) {
    const beside = asLoose(resources[field]);
    for (const [name, amount] of Object.entries(asLoose(asLoose(container.resources)[field])))
      if (beside[name] !== undefined && String(beside[name]) !== String(amount))
        return (
          `resources.${field}: ${name} is ${String(amount)}, ` +
          `and ${String(beside[name])} beside podTemplate; set one`
        );
  }
  const names = new Set(env);
  const own = asList(container.env).findIndex(({ name }) => names.has(name as string));
  if (own >= 0) return `env[${own}].name: Facetrain sets ${String(asList(container.env)[own]!.name)} itself; remove it`;
  const security = asLoose(container.securityContext);
  for (const [field, value] of [
    ['privileged', true],
    ['allowPrivilegeEscalation', true],
    ['readOnlyRootFilesystem', false],
  ] as const)
    if (security[field] === value)
      return `securityContext.${field}: ${value}; Facetrain’s container needs no such right and gets none; remove it`;
  return null;
}
