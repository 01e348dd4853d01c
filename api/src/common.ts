/**
 * What FaceTrainJob and QuantizeJob share: metadata, storage, pods, failure policy, conditions.
 *
 * Every schema here becomes part of a CRD, so it keeps to what a structural schema can say (no unions, every string, list
 * and map bounded, because CEL charges by the bound), and a rule over several fields is stated once with `rule`, as
 * a refinement for zod and as CEL for the API server.
 */
import { z } from 'zod';

export const API_GROUP = 'facetrain.dev';
export const API_VERSION = 'facetrain.dev/v1alpha1';

/** Longest names: `<name>-<attempt>-<rank>` must be a host name (63 characters); a FaceTrainJob's QuantizeJob is `<name>-quantize`. */
export const MAX_FACETRAINJOB_NAME = 40;
export const MAX_QUANTIZEJOB_NAME = 50;

export interface Rule<T> {
  /** The rule in the Common Expression Language, with `self` (and, for changes, `oldSelf`). */
  cel: string;
  message: string;
  /** The same for zod; a rule on changes has none, for one manifest shows no change. */
  check?: (value: T) => boolean;
  /** The field to blame, relative to the object that carries the rule. */
  path?: string[];
}

/** Attaches rules to an object: the refinements to zod and the CEL to its JSON schema. */
export function rules<T extends z.ZodType>(schema: T, list: Rule<z.output<T>>[]): T {
  let refined: z.ZodType = schema;
  for (const { check, message, path } of list) {
    if (check) refined = refined.refine(check as (value: unknown) => boolean, path ? { message, path } : { message });
  }
  const validations = list.map(({ cel, message, path }) => ({
    rule: cel,
    message,
    ...(path ? { fieldPath: `.${path.join('.')}` } : {}),
  }));
  return refined.meta({ ...schema.meta(), 'x-kubernetes-validations': validations }) as T;
}

/** An object whose defaults appear when it is left out altogether. */
export function section<T extends z.ZodRawShape>(shape: T, description: string) {
  return z
    .strictObject(shape)
    .prefault({} as never)
    .describe(description);
}

const DNS_LABEL = /^[a-z]([-a-z0-9]*[a-z0-9])?$/;

/** The part of a Kubernetes ObjectMeta that matters here; other fields of it are let through. */
export function objectMeta(maxName: number) {
  return z.looseObject({
    name: z
      .string()
      .min(1)
      .max(maxName)
      .regex(DNS_LABEL, 'lower-case letters, digits and "-", starting with a letter')
      .describe(`Name of the job, a DNS label of at most ${maxName} characters.`),
    namespace: z.string().min(1).max(63).optional(),
    uid: z.string().optional(),
    generation: z.int().optional(),
    creationTimestamp: z.string().optional(),
    deletionTimestamp: z.string().optional(),
    labels: z.record(z.string(), z.string()).optional(),
    annotations: z.record(z.string(), z.string()).optional(),
  });
}

/** A Kubernetes time: RFC 3339 in UTC. */
export const Time = z.string().max(64).meta({ format: 'date-time' });

const secretRef = z
  .strictObject({ name: z.string().min(1).max(253).describe('Name of a Secret in the job’s namespace.') })
  .describe(
    'Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), given to the pods as environment. Absent: the pod’s own identity.',
  );

export const S3Access = z
  .strictObject({
    endpoint: z
      .string()
      .min(1)
      .max(512)
      .regex(/^https?:\/\/.+$/, 'http://… or https://…')
      .optional()
      .describe('URL of an S3 server other than AWS.'),
    region: z.string().min(1).max(64).optional().describe('Region; the SDK’s own rules decide when it is absent.'),
    forcePathStyle: z
      .boolean()
      .default(false)
      .describe('Put the bucket in the path, not in the host name; most S3 servers other than AWS want it.'),
    secretRef: secretRef.optional(),
  })
  .describe('How to reach an s3:// address.');
export type S3Access = z.infer<typeof S3Access>;

export type StorageScheme = 'file' | 'hostpath' | 'pvc' | 's3';

const SCHEME_HELP: Record<StorageScheme, string> = {
  file: 'file://PATH is a path on this machine (relative to the manifest with `facetrain run`) or inside the container',
  hostpath: 'hostpath:///PATH is a path of the node',
  pvc: 'pvc://CLAIM/PATH is a path in a PersistentVolumeClaim',
  s3: 's3://BUCKET/KEY is an object store',
};

function storageUri(schemes: StorageScheme[], description: string) {
  const forms = {
    file: 'file://.+',
    hostpath: 'hostpath:///.*',
    pvc: 'pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?',
    s3: 's3://[a-z0-9][-a-z0-9.]+(/.*)?',
  };
  const pattern = new RegExp(`^(${schemes.map((scheme) => forms[scheme]).join('|')})$`);
  return z
    .string()
    .min(1)
    .max(1024)
    .regex(pattern, schemes.map((scheme) => SCHEME_HELP[scheme]).join('; '))
    .describe(`${description} ${schemes.map((scheme) => SCHEME_HELP[scheme]).join('; ')}.`);
}

/** As S3Access, for what is read. */
const S3Source = z
  .strictObject({
    ...S3Access.shape,
    cache: storageUri(
      ['hostpath', 'pvc'],
      'A folder that pods may write, where they keep what they fetch for each other and for later ones: each object comes once to a node, or to a claim. Files must not change in the store; nothing is ever removed here. Absent: every pod fetches for itself.',
    ).optional(),
  })
  .describe('How to reach an s3:// address, and where to keep what is fetched.');

const S3_RULE = {
  cel: "!has(self.s3) || self.uri.startsWith('s3://')",
  message: 's3 is only for an s3:// uri',
  check: (value: { uri?: string | undefined; s3?: unknown }) =>
    value.s3 === undefined || (value.uri ?? '').startsWith('s3://'),
  path: ['s3'],
};

/** Something that is read: a file or a folder in any storage. */
export function source(description: string) {
  return rules(
    z.strictObject({ uri: storageUri(['file', 'hostpath', 'pvc', 's3'], description), s3: S3Source.optional() }),
    [S3_RULE],
  ).describe(description);
}

/** A folder on a file system, which every pod of a job can write and later attempts can read. */
export function folder(description: string) {
  return storageUri(['file', 'hostpath', 'pvc'], description);
}

/** Where finished files are published: a folder or an object store. */
export function destination(description: string) {
  return rules(
    z.strictObject({ uri: storageUri(['file', 'hostpath', 'pvc', 's3'], description), s3: S3Access.optional() }),
    [S3_RULE],
  ).describe(description);
}

export interface StorageRef {
  uri: string;
  s3?: (S3Access & { cache?: string | undefined }) | undefined;
}

export type StorageLocation =
  | { scheme: 'file'; path: string }
  | { scheme: 'hostpath'; path: string }
  | { scheme: 'pvc'; claim: string; path: string }
  | { scheme: 's3'; bucket: string; key: string };

/** Splits a uri that the schemas above have accepted. Paths of claims and keys carry no leading slash. */
export function parseStorageUri(uri: string): StorageLocation {
  const match = /^(file|hostpath|pvc|s3):\/\/(.*)$/s.exec(uri);
  if (!match) throw new TypeError(`not a storage uri: ${uri}`);
  const [, scheme, rest] = match as unknown as [string, StorageScheme, string];
  if (scheme === 'file' || scheme === 'hostpath') return { scheme, path: rest };
  const slash = rest.indexOf('/');
  const head = slash < 0 ? rest : rest.slice(0, slash);
  const tail = slash < 0 ? '' : rest.slice(slash + 1);
  return scheme === 'pvc' ? { scheme, claim: head, path: tail } : { scheme, bucket: head, key: tail };
}

/** A path below a storage uri. */
export function joinStorageUri(uri: string, ...parts: string[]): string {
  return [uri.replace(/\/+$/, ''), ...parts].join('/');
}

export const EvaluationSet = rules(
  z.strictObject({
    name: z
      .string()
      .min(1)
      .max(63)
      .regex(/^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$/, 'letters, digits, "-", "_" and "."')
      .describe('Name of the set in reports and status.'),
    uri: storageUri(['file', 'hostpath', 'pvc', 's3'], 'A verification set in insightface’s .bin layout.'),
    s3: S3Source.optional(),
  }),
  [S3_RULE],
);
export type EvaluationSet = z.infer<typeof EvaluationSet>;

export const evaluationSets = z
  .array(EvaluationSet)
  .max(32)
  .default([])
  .meta({
    'x-kubernetes-list-type': 'map',
    'x-kubernetes-list-map-keys': ['name'],
    description: 'Verification sets: pairs of faces, scored by the 10-fold protocol with flip.',
  })
  .refine((sets) => new Set(sets.map((set) => set.name)).size === sets.length, 'names of evaluation sets must differ');

const quantity = z.union([z.string().min(1).max(64), z.number().min(0)]).meta({ 'x-kubernetes-int-or-string': true });

export const Resources = z
  .strictObject({
    limits: z
      .record(z.string(), quantity)
      .meta({ maxProperties: 32 })
      .optional()
      .describe('Largest amounts, e.g. {nvidia.com/gpu: 1, memory: 64Gi}.'),
    requests: z
      .record(z.string(), quantity)
      .meta({ maxProperties: 32 })
      .optional()
      .describe('Amounts the scheduler reserves.'),
  })
  .describe('Resources of the container of every pod.');
export type Resources = z.infer<typeof Resources>;

const templateContainer = z.looseObject({
  name: z.string(),
  env: z.array(z.looseObject({ name: z.string() })).optional(),
  volumeMounts: z.array(z.looseObject({ name: z.string() })).optional(),
});

/** What pods are made of; used by trainers and by the quantizer. */
export const podFields = {
  image: z
    .string()
    .min(1)
    .max(512)
    .optional()
    .describe('Container image; absent: the one the operator was installed with.'),
  imagePullPolicy: z.enum(['Always', 'IfNotPresent', 'Never']).optional().describe('As in a pod.'),
  resources: Resources.optional(),
  computeThreads: z
    .int()
    .min(1)
    .max(256)
    .optional()
    .describe(
      'Threads for arithmetic in every process; absent: the container’s CPUs, shared by the processes on the machine.',
    ),
  podTemplate: z
    .looseObject({
      metadata: z
        .looseObject({
          labels: z.record(z.string(), z.string()).optional(),
          annotations: z.record(z.string(), z.string()).optional(),
        })
        .optional(),
      spec: z
        .looseObject({
          containers: z.array(templateContainer).optional(),
          initContainers: z.array(templateContainer).optional(),
          volumes: z.array(z.looseObject({ name: z.string() })).optional(),
          tolerations: z.array(z.looseObject({ key: z.string().optional() })).optional(),
        })
        .optional(),
    })
    .optional()
    .describe(
      'A PodTemplateSpec that is laid under ours: labels, annotations, nodeSelector, tolerations, volumes, more containers. The container named "facetrain" is merged with ours.',
    ),
};

export const seconds = (description: string) => z.int().min(1).max(31_536_000).describe(description);

export const managedBy = z
  .string()
  .min(1)
  .max(63)
  .regex(/^[a-z0-9]([-a-z0-9.]*[a-z0-9])?\/[-A-Za-z0-9_.]+$/, 'a domain-prefixed path, such as acme.example/controller')
  .optional()
  .describe(
    'Another controller that takes care of this job; ours then leaves it alone. Cannot be changed. Absent: facetrain.dev/operator.',
  );

const FailureRule = rules(
  z.strictObject({
    name: z.string().min(1).max(63).optional().describe('Shows in events.'),
    exitCodes: z
      .array(z.int32().min(1).max(255))
      .min(1)
      .max(64)
      .optional()
      .meta({ 'x-kubernetes-list-type': 'set' })
      .describe('Matches when the first failed container left with one of these.'),
    reasons: z
      .array(z.string().min(1).max(64))
      .min(1)
      .max(32)
      .optional()
      .meta({ 'x-kubernetes-list-type': 'set' })
      .describe(
        'Matches the code in the termination message (such as NotANumber), or the reason Kubernetes gives (such as OOMKilled).',
      ),
    action: z
      .enum(['FailJob', 'Restart', 'RestartWithoutCounting'])
      .describe(
        'FailJob: no more attempts. Restart: a new attempt, counted. RestartWithoutCounting: a new attempt that maxRestarts does not see.',
      ),
  }),
  [
    {
      cel: 'has(self.exitCodes) || has(self.reasons)',
      message: 'a rule needs exitCodes or reasons',
      check: (value) => value.exitCodes !== undefined || value.reasons !== undefined,
    },
  ],
);

export const failurePolicy = section(
  {
    maxRestarts: z
      .int32()
      .min(0)
      .max(100)
      .default(3)
      .describe(
        'Counted restarts allowed within windowSeconds. Disruptions (eviction, preemption, node drain) never count.',
      ),
    windowSeconds: seconds('Restarts longer ago than this are forgotten.').default(21_600),
    rules: z
      .array(FailureRule)
      .max(20)
      .default([])
      .meta({ 'x-kubernetes-list-type': 'atomic' })
      .describe(
        'The first rule that matches decides; where none does: a refused input (exit code 2) and a missed gate (3) fail the job, anything else restarts the gang.',
      ),
  },
  'What to do when a process fails. A restart is always that of the whole gang, from the newest complete checkpoint.',
);
export type FailurePolicy = z.infer<typeof failurePolicy>;

export const ttlSecondsAfterFinished = z
  .strictObject({
    succeeded: z.int().min(0).max(31_536_000).optional().describe('After success.'),
    failed: z.int().min(0).max(31_536_000).optional().describe('After failure.'),
  })
  .optional()
  .describe('When a finished job is deleted, with its pods; absent: never.');

/** metav1.Condition. */
export const Condition = z.strictObject({
  type: z.string().max(316).describe('What the condition is about.'),
  status: z.enum(['True', 'False', 'Unknown']).describe('Whether it holds.'),
  observedGeneration: z.int().min(0).optional().describe('The generation of the spec that it was computed from.'),
  lastTransitionTime: Time.describe('When status last changed.'),
  reason: z.string().min(1).max(1024).describe('One word for a program.'),
  message: z.string().max(32_768).describe('A sentence for a person.'),
});
export type Condition = z.infer<typeof Condition>;

export const conditions = z
  .array(Condition)
  .max(32)
  .meta({ 'x-kubernetes-list-type': 'map', 'x-kubernetes-list-map-keys': ['type'] })
  .describe('What holds for the job now.');

export const Restarts = z
  .strictObject({
    count: z.int32().min(0).describe('Restarts that counted, over the job’s whole life.'),
    countedTimes: z
      .array(Time)
      .max(101)
      .meta({ 'x-kubernetes-list-type': 'atomic' })
      .describe('Times of the counted restarts that are still inside the window.'),
    disruptions: z.int32().min(0).describe('Restarts that did not count.'),
    lastReason: z.string().max(1024).optional().describe('Why the last restart happened.'),
    lastMessage: z.string().max(4096).optional().describe('What the failed process said.'),
    lastExitCode: z.int32().optional().describe('Exit code of the process that failed first.'),
    lastRank: z.int32().min(0).optional().describe('Its rank.'),
    lastNode: z.string().max(253).optional().describe('Its node.'),
    lastTime: Time.optional().describe('When the restart was decided.'),
  })
  .describe('Restarts so far, and the last one.');
export type Restarts = z.infer<typeof Restarts>;

export const ArtifactStatus = z
  .strictObject({
    uri: z.string().max(1024).describe('Where it was published.'),
    manifestSha256: z
      .string()
      .max(64)
      .optional()
      .describe('Digest of the artifact’s manifest.json, which holds that of every file.'),
    bytes: z.int().min(0).optional().describe('Size of all files.'),
    meanCosine: z.number().optional().describe('Mean cosine between FP32 and INT7 embeddings.'),
    accuracyDrop: z.number().optional().describe('Largest drop of accuracy over the evaluation sets.'),
    gate: z
      .enum(['Passed', 'NotChecked'])
      .optional()
      .describe('Passed: within the bounds of spec.gate. NotChecked: it has none. A missed gate publishes nothing.'),
  })
  .describe('The published INT7 artifact.');
export type ArtifactStatus = z.infer<typeof ArtifactStatus>;
