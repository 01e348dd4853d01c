/**
 * Fields that FaceTrainJob and QuantizeJob share: metadata, evaluation sets, pods, failure policy, conditions,
 * restarts.
 */
import { z } from 'zod';
import { DNS_LABEL, OPERATOR_NAME } from './identifiers.ts';
import { Quantity } from './quantity.ts';
import { computeThreads, MAX_SETS, setName } from './ranges.ts';
import { rules, section, unchangedOptional } from './schema-rules.ts';
import { DEFAULT_NODE_LOST_SECONDS } from './shared-defaults.ts';
import { S3_RULE, source, sourceFields } from './storage.ts';

/** The fields of a Kubernetes ObjectMeta that are used here; its other fields are accepted as they are. */
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

export const EvaluationSet = rules(
  z.strictObject({
    name: setName.describe('Name of the set in reports and status.'),
    ...sourceFields('A verification set in insightface’s .bin layout.'),
    groups: source(
      'Groups of the pairs, for figures by group: a text file with a line for each pair, the name of its group.',
    ).optional(),
  }),
  [S3_RULE],
);
export type EvaluationSet = z.infer<typeof EvaluationSet>;

export const evaluationSets = z
  .array(EvaluationSet)
  .max(MAX_SETS)
  .default([])
  .meta({
    'x-kubernetes-list-type': 'map',
    'x-kubernetes-list-map-keys': ['name'],
    description: 'Verification sets: pairs of faces, scored by the 10-fold protocol with flip.',
  })
  .refine((sets) => new Set(sets.map((set) => set.name)).size === sets.length, 'names of evaluation sets must differ');

/** A DNS subdomain by RFC 1123: the form of the names of most Kubernetes objects. */
const DNS_SUBDOMAIN = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const objectName = z.string().min(1).max(253).regex(DNS_SUBDOMAIN, 'the name of a Kubernetes object');

export const Resources = z
  .strictObject({
    limits: z
      .record(z.string(), Quantity)
      .meta({ maxProperties: 32 })
      .optional()
      .describe('Largest amounts, e.g. {nvidia.com/gpu: 1, memory: 64Gi}.'),
    requests: z
      .record(z.string(), Quantity)
      .meta({ maxProperties: 32 })
      .optional()
      .describe('Amounts that the scheduler reserves.'),
    claims: z
      .array(
        z.strictObject({
          name: z.string().min(1).max(63).describe('Name of an entry of podTemplate.spec.resourceClaims.'),
          request: z.string().min(1).max(63).optional().describe('A request in that claim; absent: all of them.'),
        }),
      )
      .max(32)
      .optional()
      .meta({ 'x-kubernetes-list-type': 'atomic' })
      .describe('Devices of Dynamic Resource Allocation.'),
  })
  .describe('Resources of the container of every pod.');
export type Resources = z.infer<typeof Resources>;

const ResourceClaim = rules(
  z.strictObject({
    name: z.string().min(1).max(63).regex(DNS_LABEL, 'a DNS label').describe('Name of the claim in the pod.'),
    resourceClaimTemplateName: objectName
      .optional()
      .describe('A ResourceClaimTemplate of the namespace: every pod gets a claim of its own.'),
    resourceClaimName: objectName.optional().describe('A ResourceClaim of the namespace, which all pods share.'),
    request: z
      .string()
      .min(1)
      .max(63)
      .optional()
      .describe('The request of the claim whose devices the container gets; absent: those of all.'),
  }),
  [
    {
      cel: 'has(self.resourceClaimTemplateName) != has(self.resourceClaimName)',
      message: 'exactly one of resourceClaimTemplateName and resourceClaimName must be set',
      check: (value) => (value.resourceClaimTemplateName === undefined) !== (value.resourceClaimName === undefined),
    },
  ],
);
export type ResourceClaim = z.infer<typeof ResourceClaim>;

const templateContainer = z.looseObject({
  name: z.string(),
  env: z.array(z.looseObject({ name: z.string() })).optional(),
  volumeMounts: z.array(z.looseObject({ name: z.string() })).optional(),
});

/** Fields by which a job describes its pods: those of the trainers, and that of the quantizer. */
export const podFields = {
  image: z
    .string()
    .min(1)
    .max(512)
    .optional()
    .describe('Container image; absent: the one the operator was installed with.'),
  imagePullPolicy: z.enum(['Always', 'IfNotPresent', 'Never']).optional().describe('As in a pod.'),
  resources: Resources.optional(),
  resourceClaims: z
    .array(ResourceClaim)
    .max(32)
    .refine((claims) => new Set(claims.map(({ name }) => name)).size === claims.length, 'names of claims must differ')
    .optional()
    .meta({ 'x-kubernetes-list-type': 'map', 'x-kubernetes-list-map-keys': ['name'] })
    .describe(
      'Devices of Dynamic Resource Allocation: claims of every pod, which the container of the program uses. Instead ' +
        'of podTemplate.spec.resourceClaims with an entry of resources.claims for each.',
    ),
  computeThreads: computeThreads
    .optional()
    .describe(
      'Threads for arithmetic in every process; absent: the container’s CPUs, divided by the processes on the machine.',
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
          priorityClassName: z.string().max(253).optional(),
        })
        .optional(),
    })
    .optional()
    .describe(
      'A PodTemplateSpec for everything else: labels, annotations, nodeSelector, tolerations, volumes, more ' +
        'containers. The container named "facetrain" is merged with Facetrain’s own. A field that Facetrain sets ' +
        'itself (args, hostname, RANK and the like) is refused, with InvalidSpec.',
    ),
};

const YEAR_SECONDS = 31_536_000;

/** A whole number of seconds, up to a year. */
export const seconds = (description: string) => z.int().min(1).max(YEAR_SECONDS).describe(description);

export const managedBy = z
  .string()
  .min(1)
  .max(63)
  .regex(/^[a-z0-9]([-a-z0-9.]*[a-z0-9])?\/[-A-Za-z0-9_.]+$/, 'a domain-prefixed path, such as acme.example/controller')
  .optional()
  .describe(
    'Another controller that manages this job; Facetrain’s operator then ignores it, except that with ' +
      'kueue.x-k8s.io/multikueue it asks the queue for the job’s place. Cannot be changed. ' +
      `Absent: ${OPERATOR_NAME}.`,
  );

/** `managedBy` of a job never changes: two operators would act on it at the same time. */
export const MANAGED_BY_RULE = {
  cel:
    'has(self.managedBy) == has(oldSelf.managedBy) && ' +
    '(!has(self.managedBy) || self.managedBy == oldSelf.managedBy)',
  message: 'managedBy cannot be changed',
  path: ['managedBy'],
};

/** Key of a label, a qualified name of Kubernetes: a name of at most 63 characters, with the prefix of a domain. */
export const labelKey = z
  .string()
  .min(1)
  .max(317)
  .regex(
    new RegExp(`^(${DNS_SUBDOMAIN.source.slice(1, -1)}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`),
    'the key of a label, such as topology.kubernetes.io/zone',
  );

/** A queue of KAI Scheduler or Volcano. KAI's is the value of a label, too, which has at most 63 characters. */
export const queueName = z.string().min(1).max(63).regex(DNS_SUBDOMAIN, 'the name of a Kubernetes object');

/** `spec.queue`. */
export const queue = z
  .strictObject({
    name: objectName.describe('A LocalQueue (kueue.x-k8s.io) in the namespace of the job.'),
    priorityClassName: objectName
      .optional()
      .describe('A WorkloadPriorityClass: who is admitted first, and who preempts whom; absent: priority 0.'),
  })
  .describe(
    'The queue of Kueue in which the job waits for the quota of all its pods. It has no pod before it is admitted, ' +
      'and none while its quota is needed elsewhere; that is no restart. Can change only while the job is ' +
      'suspended. Absent: no queue.',
  );
export type Queue = z.infer<typeof queue>;

/** The queue of a job that is not suspended never changes: Kueue has lent it quota by that queue. */
export const QUEUE_RULE = {
  cel: `oldSelf.suspend || (${unchangedOptional('queue')})`,
  message: 'queue can change only while the job is suspended',
  path: ['queue'],
};

/** Largest maxRestarts. */
const MAX_RESTARTS = 100;

const FailureRule = rules(
  z.strictObject({
    name: z.string().min(1).max(63).optional().describe('Named in the message of the restart or the failure.'),
    exitCodes: z
      .array(z.int32().min(1).max(255))
      .min(1)
      .max(64)
      .optional()
      .meta({ 'x-kubernetes-list-type': 'set' })
      .describe('Matches if the trainer or quantizer that failed first has one of these exit codes.'),
    reasons: z
      .array(z.string().min(1).max(64))
      .min(1)
      .max(32)
      .optional()
      .meta({ 'x-kubernetes-list-type': 'set' })
      .describe(
        'Matches the code in the termination message (such as NotANumber), the reason that Kubernetes reports ' +
          '(such as OOMKilled), or the reason in the status. Disrupted matches every pod with the condition ' +
          'DisruptionTarget.',
      ),
    action: z
      .enum(['FailJob', 'Restart', 'RestartWithoutCounting'])
      .describe(
        'FailJob: no more attempts. Restart: a new attempt, counted against maxRestarts. ' +
          'RestartWithoutCounting: a new attempt that is not counted.',
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
      .max(MAX_RESTARTS)
      .default(3)
      .describe(
        'Counted restarts allowed within windowSeconds. Unless a rule says otherwise, disruptions do not count: what ' +
          'others did to a pod (preemption, a drain, a lost node, its deletion).',
      ),
    windowSeconds: seconds('Only restarts of the last windowSeconds count against maxRestarts.').default(21_600),
    nodeLostSeconds: seconds(
      'How long a node may be unreachable or not ready before its pods count as lost. The pods of an unreachable ' +
        'node are lost at once if their gang has stood still for half as long (at least 30 s), or if the node was ' +
        'deleted or has the taint node.kubernetes.io/out-of-service. A toleration for ' +
        'node.kubernetes.io/unreachable in the pod template replaces it.',
    ).default(DEFAULT_NODE_LOST_SECONDS),
    rules: z
      .array(FailureRule)
      .max(20)
      .default([])
      .meta({ 'x-kubernetes-list-type': 'atomic' })
      .describe(
        'The first rule that matches decides, also about disruptions. If none does, a refused input (exit code 2) ' +
          'and a missed gate (3) fail the job, and anything else restarts the gang.',
      ),
  },
  'What to do when a process fails. A restart always restarts the whole gang, from the newest complete checkpoint.',
);
export type FailurePolicy = z.infer<typeof failurePolicy>;

export const ttlSecondsAfterFinished = z
  .strictObject({
    succeeded: z.int().min(0).max(YEAR_SECONDS).optional().describe('After success.'),
    failed: z.int().min(0).max(YEAR_SECONDS).optional().describe('After failure.'),
  })
  .optional()
  .describe('When a finished job is deleted, with its pods; absent: never.');

/** metav1.Condition. */
export const Condition = z.strictObject({
  type: z.string().max(316).describe('Name of the condition.'),
  status: z.enum(['True', 'False', 'Unknown']).describe('Whether the condition holds.'),
  observedGeneration: z.int().min(0).optional().describe('The generation of the spec that it was computed from.'),
  lastTransitionTime: Time.describe('When status last changed.'),
  reason: z.string().min(1).max(1024).describe('The cause in one word, for programs.'),
  message: z.string().max(32_768).describe('The cause as a sentence, for people.'),
});
export type Condition = z.infer<typeof Condition>;

const conditions = z
  .array(Condition)
  .max(32)
  .meta({ 'x-kubernetes-list-type': 'map', 'x-kubernetes-list-map-keys': ['type'] })
  .describe('The current conditions of the job.');

/** Longest message of a restart, in characters. */
export const MAX_RESTART_MESSAGE = 4096;

export const Restarts = z
  .strictObject({
    count: z.int32().min(0).describe('Restarts that counted, over the job’s whole life.'),
    countedTimes: z
      .array(Time)
      .max(MAX_RESTARTS + 1)
      .meta({ 'x-kubernetes-list-type': 'atomic' })
      .describe('Times of the counted restarts that are still inside the window.'),
    disruptions: z.int32().min(0).describe('Restarts that did not count.'),
    inPlace: z
      .int32()
      .min(0)
      .optional()
      .describe(
        'Restarts, among those that counted, in place: the kubelet started the trainers again in their pods, and the ' +
          'attempt stayed the same. All others began another attempt, with new pods.',
      ),
    disruptionsInRow: z
      .int32()
      .min(0)
      .optional()
      .describe(
        'Restarts that did not count since the last one that did, or since an attempt lasted ten minutes. The wait ' +
          'before the next attempt grows with it.',
      ),
    lastNotANumberStep: z
      .int()
      .min(0)
      .optional()
      .describe('The step at which the loss was last not finite. A second time at the same step fails the job.'),
    lastReason: z.string().max(1024).optional().describe('Cause of the last restart, in one word.'),
    lastMessage: z.string().max(MAX_RESTART_MESSAGE).optional().describe('The failure, as a sentence.'),
    lastExitCode: z.int32().optional().describe('Exit code of the process that failed first.'),
    lastRank: z.int32().min(0).optional().describe('Its rank.'),
    lastNode: z.string().max(253).optional().describe('Its node.'),
    lastTime: Time.optional().describe('When the restart was decided.'),
  })
  .describe('Restarts so far, and the last one.');
export type Restarts = z.infer<typeof Restarts>;

/** The fields that the status of both kinds begins with. */
export const firstStatusFields = <Phase extends z.ZodEnum>(phase: Phase) => ({
  observedGeneration: z
    .int()
    .min(0)
    .optional()
    .describe('The generation of the spec that this status was computed from.'),
  phase: phase.optional().describe('Summary in one word, for people; programs read the conditions.'),
  conditions: conditions.optional(),
  attempt: z.int32().min(0).optional().describe('Number of the current attempt, from 0. Each attempt has new pods.'),
  startTime: Time.optional().describe(
    'When pods of the job were first wanted, also if a quota refused them; activeDeadlineSeconds counts from here. ' +
      'Set anew when a suspended job is resumed.',
  ),
  queuedTime: Time.optional().describe(
    'Since when a job that has run waits in its queue for its quota again. No deadline runs meanwhile.',
  ),
  queuedSeconds: z
    .int()
    .min(0)
    .optional()
    .describe(
      'Seconds since startTime for which the job has waited in its queue after evictions. activeDeadlineSeconds does ' +
        'not count them.',
    ),
  pendingTime: Time.optional().describe(
    'When the pods of the current attempt were first wanted; pendingDeadlineSeconds counts from here. It stays when ' +
      'a gang lets go of its pods, and when one that was not whole yet has a restart that does not count.',
  ),
});

/** `status.refusal`. */
export const Refusal = z
  .strictObject({
    quota: z.string().max(253).optional().describe('The ResourceQuota that is used up; absent: another refusal.'),
    reason: z
      .string()
      .max(64)
      .optional()
      .describe('ChildRefused, WebhookFailed or CreateFailed; absent when a ResourceQuota is used up.'),
    message: z.string().max(2048).describe('What was refused, in the API server’s words.'),
    releases: z
      .int32()
      .min(0)
      .describe('How often the gang let go of the pods that it had, because it could not get all of them.'),
    releaseTime: Time.optional().describe('When it did so last. The wait for the next try grows with releases.'),
  })
  .describe('Why the API server refuses objects of the current attempt; absent when all were created.');
export type Refusal = z.infer<typeof Refusal>;

export const ArtifactStatus = z
  .strictObject({
    uri: z.string().max(1024).describe('Where it was published.'),
    manifestSha256: z
      .string()
      .max(64)
      .optional()
      .describe('SHA-256 of the artifact’s manifest.json, which lists the SHA-256 of every other file.'),
    bytes: z.int().min(0).optional().describe('Size of all files.'),
    meanCosine: z.number().optional().describe('Mean cosine between FP32 and INT7 embeddings.'),
    accuracyDrop: z.number().optional().describe('Largest drop of accuracy over the evaluation sets.'),
    gate: z
      .enum(['Passed', 'NotChecked'])
      .optional()
      .describe(
        'Passed: within the bounds of spec.gate. NotChecked: spec.gate has no bounds. A missed gate publishes nothing.',
      ),
  })
  .describe('The published INT7 artifact.');
export type ArtifactStatus = z.infer<typeof ArtifactStatus>;
