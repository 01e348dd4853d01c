/**
 * The CustomResourceDefinitions, made from the zod schemas.
 *
 * An API server takes only structural schemas. The JSON schema that zod writes has to be changed for that: no unions,
 * no `additionalProperties: false`, and some keywords have Kubernetes' own names.
 */
import { z } from 'zod';
import { FaceTrainJobSpec, FaceTrainJobStatus, sameTraining } from './facetrainjob.ts';
import { API_GROUP, API_VERSION, DNS_LABEL, MAX_FACETRAINJOB_NAME, MAX_QUANTIZEJOB_NAME } from './identifiers.ts';
import { isPlainObject } from './plain-object.ts';
import { QuantizeJobSpec, QuantizeJobStatus } from './quantizejob.ts';

type Schema = { [key: string]: unknown };

/** Turns a JSON schema, with all that it contains, into a structural schema. */
function structural(node: Schema): Schema {
  // A value of several types. Each of these keywords is for values of one type; the operator checks that it is one of
  // them.
  if (node['x-kubernetes-preserve-unknown-fields'] && node.anyOf) {
    const { description } = node;
    const kinds = (node.anyOf as Schema[]).map(({ type: _, ...keywords }) => keywords);
    return Object.assign({ ...(description === undefined ? {} : { description }) }, ...kinds, {
      'x-kubernetes-preserve-unknown-fields': true,
    });
  }
  const { additionalProperties, properties, items, ...rest } = node;
  const result: Schema = { ...rest };
  if (isPlainObject(properties))
    result.properties = Object.fromEntries(
      Object.entries(properties).map(([name, property]) => [name, structural(property as Schema)]),
    );
  if (isPlainObject(items)) result.items = structural(items);
  if (isPlainObject(additionalProperties) && Object.keys(additionalProperties).length > 0)
    result.additionalProperties = structural(additionalProperties);
  // An object that accepts unknown fields (a pod template): the API server keeps all its fields and checks none of
  // them.
  else if (isPlainObject(additionalProperties)) {
    delete result.properties;
    delete result.required;
    result['x-kubernetes-preserve-unknown-fields'] = true;
  }
  if (node.type === 'integer') {
    // zod writes the range of int32 or of a safe integer as bounds; Kubernetes has `format` for it.
    const isUnbounded = (bound: unknown) => Math.abs(Number(bound)) >= Number.MAX_SAFE_INTEGER;
    if (isUnbounded(node.minimum)) delete result.minimum;
    if (isUnbounded(node.maximum)) delete result.maximum;
    const isInt32 = Math.abs(Number(node.maximum)) < 2 ** 31 && Math.abs(Number(node.minimum ?? 0)) <= 2 ** 31;
    if (isInt32 && Number(node.maximum) === 2 ** 31 - 1) delete result.maximum;
    if (Number(node.minimum) === -(2 ** 31)) delete result.minimum;
    result.format = isInt32 ? 'int32' : 'int64';
  }
  if (node.format === 'date-time') delete result.pattern;
  return result;
}

function openApi(schema: z.ZodType): Schema {
  return structural(z.toJSONSchema(schema, { target: 'openapi-3.0', io: 'input', unrepresentable: 'any' }) as Schema);
}

/** A column of `kubectl get`. */
export interface PrinterColumn {
  name: string;
  type: 'string' | 'integer' | 'number' | 'date';
  jsonPath: string;
  description: string;
  /** Columns above 0 are shown with `kubectl get -o wide` only. */
  priority?: number;
}

interface Definition {
  kind: string;
  plural: string;
  singular: string;
  shortNames: string[];
  description: string;
  maxName: number;
  spec: z.ZodType;
  status: z.ZodType;
  /** Of the scale subresource, by which `kubectl scale` works. */
  scale?: { specReplicasPath: string; statusReplicasPath: string; labelSelectorPath: string };
  columns: PrinterColumn[];
}

const age: PrinterColumn = {
  name: 'Age',
  type: 'date',
  jsonPath: '.metadata.creationTimestamp',
  description: 'When it was created.',
};

const ready = (field: 'reason' | 'message') => `.status.conditions[?(@.type=="Ready")].${field}`;
const reason: PrinterColumn = {
  name: 'Reason',
  type: 'string',
  jsonPath: ready('reason'),
  description: 'Reason of the Ready condition: ImagePullBackOff, Unschedulable, ...',
};
const message: PrinterColumn = {
  name: 'Message',
  type: 'string',
  jsonPath: ready('message'),
  description: 'Message of the Ready condition.',
  priority: 1,
};

const definitions: Definition[] = [
  {
    kind: 'FaceTrainJob',
    plural: 'facetrainjobs',
    singular: 'facetrainjob',
    shortNames: ['ftj'],
    description: 'Trains a face model by Partial FC on a gang of trainers, and can hand it to the quantizer.',
    maxName: MAX_FACETRAINJOB_NAME,
    spec: FaceTrainJobSpec,
    status: FaceTrainJobStatus,
    scale: {
      specReplicasPath: '.spec.trainers.replicas',
      statusReplicasPath: '.status.trainers.desired',
      labelSelectorPath: '.status.trainers.selector',
    },
    columns: [
      { name: 'Phase', type: 'string', jsonPath: '.status.phase', description: 'Phase of the job.' },
      reason,
      {
        name: 'Progress%',
        type: 'integer',
        jsonPath: '.status.progress.percent',
        description: 'Per cent of the steps.',
      },
      { name: 'Step', type: 'integer', jsonPath: '.status.progress.step', description: 'Steps done.', priority: 1 },
      { name: 'Loss', type: 'number', jsonPath: '.status.progress.loss', description: 'Mean over the last steps.' },
      {
        name: 'Images/s',
        type: 'number',
        jsonPath: '.status.progress.imagesPerSecond',
        description: 'Over all trainers.',
      },
      {
        name: 'Ready',
        type: 'integer',
        jsonPath: '.status.trainers.ready',
        description: 'Trainers that run and are ready.',
      },
      { name: 'Trainers', type: 'integer', jsonPath: '.status.trainers.desired', description: 'Trainers in the gang.' },
      { name: 'Restarts', type: 'integer', jsonPath: '.status.restarts.count', description: 'Restarts that counted.' },
      {
        name: 'Why',
        type: 'string',
        jsonPath: '.status.restarts.lastReason',
        description: 'Reason of the last restart.',
        priority: 1,
      },
      {
        name: 'ETA',
        type: 'string',
        jsonPath: '.status.progress.estimatedCompletionTime',
        description: 'When training ends at this rate.',
        priority: 1,
      },
      age,
      message,
    ],
  },
  {
    kind: 'QuantizeJob',
    plural: 'quantizejobs',
    singular: 'quantizejob',
    shortNames: ['qj'],
    description: 'Quantizes an ONNX face model to INT7 by EasyQuant, compares it with the original, and publishes it.',
    maxName: MAX_QUANTIZEJOB_NAME,
    spec: QuantizeJobSpec,
    status: QuantizeJobStatus,
    columns: [
      { name: 'Phase', type: 'string', jsonPath: '.status.phase', description: 'Phase of the job.' },
      reason,
      {
        name: 'Cosine',
        type: 'number',
        jsonPath: '.status.artifact.meanCosine',
        description: 'Between FP32 and INT7 embeddings.',
      },
      {
        name: 'Drop',
        type: 'number',
        jsonPath: '.status.artifact.accuracyDrop',
        description: 'Accuracy lost on the worst set.',
      },
      { name: 'Restarts', type: 'integer', jsonPath: '.status.restarts.count', description: 'Restarts that counted.' },
      {
        name: 'Artifact',
        type: 'string',
        jsonPath: '.status.artifact.uri',
        description: 'Where it was published.',
        priority: 1,
      },
      age,
      message,
    ],
  },
];

/** Fields of a spec that may change after the end: what becomes of the job and its pods. */
const CHANGEABLE_AFTER_END: readonly string[] = ['suspend', 'cleanPodPolicy', 'ttlSecondsAfterFinished'];

/**
 * A rule on changes in CEL: the spec of a finished job stays. The job is not run again, so its status would speak of a
 * spec that was never carried out. The status of a request for the job itself is that which is stored (the
 * strategy of apiextensions-apiserver sets it before it validates), so the rule sees the end.
 *
 * Each field is compared by itself, because a pod template cannot be: CEL has no access to fields that only
 * `x-kubernetes-preserve-unknown-fields` keeps. Fields with a default are always set, also in an object that was stored
 * before the field existed: the API server fills defaults in when it reads.
 */
function finishedSpecRule(spec: Schema): { rule: string; message: string; fieldPath: string } {
  // managedBy has a rule of its own, for the whole life of a job.
  const same = sameFields(spec, 'spec', (name) => name !== 'managedBy' && !CHANGEABLE_AFTER_END.includes(name));
  const changeable = CHANGEABLE_AFTER_END.filter((name) => name in (spec.properties as Schema));
  return {
    rule: `!has(oldSelf.status) || !has(oldSelf.status.completionTime) || (${same.join(' && ')})`,
    message:
      'the job has finished, and is not run again: of its spec only ' +
      `${changeable.slice(0, -1).join(', ')} and ${changeable.at(-1)} can change; create another job for another spec`,
    fieldPath: '.spec',
  };
}

/**
 * The same rule for the time between the end of the training and that of the job, for the fields that decide what is
 * trained: training is not repeated.
 */
const TRAINED_SPEC_RULE = {
  rule: `!has(oldSelf.status) || !has(oldSelf.status.trainingCompletionTime) || (${sameTraining('spec.')})`,
  message: 'the training has succeeded and is not repeated: what is trained cannot be changed any more',
  fieldPath: '.spec',
};

/**
 * CEL that allows one change of the `resources` of a finished job: `claims` where none were set. Earlier definitions
 * pruned them, and a tool that applies the same manifest again after the upgrade would be refused for ever. CEL cannot
 * read the other fields of `resources`, because a quantity has no type there, so this compares none of them.
 */
function addsClaims(at: string): string {
  const hasClaims = (job: string) => `(has(${job}.${at}) && has(${job}.${at}.claims))`;
  return `${hasClaims('self')} && !${hasClaims('oldSelf')}`;
}

/** CEL that compares the fields of an object in `self` and `oldSelf`, without those that CEL cannot read. */
function sameFields(object: Schema, path: string, isCompared = (_name: string) => true): string[] {
  const { properties, required = [] } = object as { properties: Record<string, Schema>; required?: string[] };
  return Object.entries(properties).flatMap(([name, field]) => {
    if (!isCompared(name) || field['x-kubernetes-preserve-unknown-fields']) return [];
    const at = `${path}.${name}`;
    const same = (isOpaque(field) ? sameFields(field, at) : [`self.${at} == oldSelf.${at}`]).join(' && ');
    if (required.includes(name) || field.default !== undefined) return [same];
    const isSame = `has(self.${at}) == has(oldSelf.${at}) && (!has(self.${at}) || (${same}))`;
    return name === 'resources' ? [`(${isSame} || ${addsClaims(at)})`] : [isSame];
  });
}

/** Whether a field somewhere in this object cannot be read by CEL. */
const isOpaque = ({ properties }: Schema): boolean =>
  isPlainObject(properties) &&
  Object.values(properties as Record<string, Schema>).some(
    (field) => field['x-kubernetes-preserve-unknown-fields'] || isOpaque(field),
  );

function definitionOf(definition: Definition) {
  const { kind, plural, singular, shortNames, description, maxName, spec, status, scale, columns } = definition;
  const specSchema = openApi(spec);
  return {
    apiVersion: 'apiextensions.k8s.io/v1',
    kind: 'CustomResourceDefinition',
    metadata: { name: `${plural}.${API_GROUP}` },
    spec: {
      group: API_GROUP,
      scope: 'Namespaced',
      names: { kind, listKind: `${kind}List`, plural, singular, shortNames, categories: ['facetrain'] },
      versions: [
        {
          name: API_VERSION.slice(`${API_GROUP}/`.length),
          served: true,
          storage: true,
          subresources: { status: {}, ...(scale && { scale }) },
          additionalPrinterColumns: columns,
          schema: {
            openAPIV3Schema: {
              type: 'object',
              description,
              required: ['spec'],
              properties: {
                apiVersion: { type: 'string', description: 'Version of the schema of this object.' },
                kind: { type: 'string', description: 'Kind of this object.' },
                metadata: { type: 'object' },
                spec: { description: 'What to do, with which data, and where the results go.', ...specSchema },
                status: openApi(status),
              },
              'x-kubernetes-validations': [
                {
                  rule: `size(self.metadata.name) <= ${maxName} && self.metadata.name.matches('${DNS_LABEL.source}')`,
                  message:
                    `the name must be a DNS label of at most ${maxName} characters that starts with a letter: ` +
                    "its pods' names are made from it",
                },
                finishedSpecRule(specSchema),
                ...(kind === 'FaceTrainJob' ? [TRAINED_SPEC_RULE] : []),
              ],
            },
          },
        },
      ],
    },
  };
}

/** @returns the definitions by file name */
export function customResourceDefinitions(): Record<string, ReturnType<typeof definitionOf>> {
  return Object.fromEntries(
    definitions.map((definition) => [`${API_GROUP}_${definition.plural}.yaml`, definitionOf(definition)]),
  );
}
