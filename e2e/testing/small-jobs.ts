/** Jobs whose containers run a command of the shell in place of the trainer: they start and end within seconds. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parse } from 'yaml';
import { TRAINER_IMAGE } from '../cluster/images.ts';
import type { Job, Namespace } from './namespace.ts';

/** How a job differs from the smallest one. */
interface Small {
  replicas?: number;
  /** What rank `$RANK` runs in place of the trainer. */
  shell: string;
  /** Other fields of our container in the template. */
  container?: object;
  /** Other fields of the pod in the template. */
  pod?: Record<string, unknown>;
  /** Other fields of `trainers`. */
  trainers?: object;
  /** Other fields of the spec. */
  spec?: object;
}

export function trainJob(name: string, { replicas = 1, shell, container, pod, trainers, spec }: Small): Job {
  return {
    ...object('FaceTrainJob', name),
    spec: {
      dataset: { uri: 'file:///data' },
      model: { backbone: 'mobilefacenet' },
      output: { uri: 'file:///tmp/out' },
      globalBatchSize: 64,
      failurePolicy: { maxRestarts: 0 },
      ...spec,
      trainers: {
        replicas,
        ...trainers,
        podTemplate: podTemplate(shell, container, pod),
      },
    },
  };
}

export function quantizeJob(name: string, { shell, container, pod, spec }: Omit<Small, 'replicas' | 'trainers'>): Job {
  return {
    ...object('QuantizeJob', name),
    spec: {
      model: { uri: 'file:///m.onnx' },
      calibration: { dataset: { uri: 'file:///data' } },
      output: { uri: 'file:///tmp/q' },
      failurePolicy: { maxRestarts: 0 },
      ...spec,
      quantizer: {
        podTemplate: podTemplate(shell, container, pod),
      },
    },
  };
}

/** A shell is process 1 of its container and ignores SIGTERM: it is killed after a second. */
const podTemplate = (shell: string, container: object = {}, pod: object = {}) => ({
  spec: {
    terminationGracePeriodSeconds: 1,
    ...pod,
    containers: [{ name: 'facetrain', command: ['sh', '-c', shell], ...container }],
  },
});

const object = (kind: string, name: string) => ({ apiVersion: 'facetrain.dev/v1alpha1', kind, metadata: { name } });

/** A container of the trainers' image that runs a command of the shell. */
export const shellContainer = (name: string, shell: string, fields: object = {}) => ({
  name,
  image: TRAINER_IMAGE,
  imagePullPolicy: 'Never',
  command: ['sh', '-c', shell],
  ...fields,
});

/** An object in YAML. */
export const yaml = (text: string): object => parse(text) as object;

/** For the shell of a job with the fields of `gated`: waits until the test calls `openGate`. */
export const AT_THE_GATE = 'until [ -e /gate/open ]; do sleep 0.2; done';
export const gated = {
  container: { volumeMounts: [{ name: 'gate', mountPath: '/gate' }] },
  pod: { volumes: [{ name: 'gate', persistentVolumeClaim: { claimName: 'facetrain' } }] },
};
export const openGate = (ns: Namespace): Promise<void> => writeFile(join(ns.folder, 'open'), '');
