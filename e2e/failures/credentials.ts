/** Credentials of an object store: wrong ones, and a Secret that changes while trainers write to the store. */
import assert from 'node:assert/strict';
import { eventually } from '@facetrain/operator/testing/eventually';
import { S3_KEYS } from '../cluster/install-facetrain.ts';
import { condition, MINUTE, type Namespace } from '../testing/namespace.ts';

/** Of the Secret `s3-credentials`, in cluster/namespace.yaml. */
const replaceKey = (ns: Namespace, key: string) =>
  ns.kubectl('patch', 'secret', 's3-credentials', '-p', JSON.stringify({ stringData: { AWS_SECRET_ACCESS_KEY: key } }));

/**
 * With a wrong key the trainers of a running job write no checkpoint and train on; with the right one they catch up.
 * @param rankZero its pod
 */
export async function trainersFollowTheirSecret(ns: Namespace, name: string, rankZero: string): Promise<void> {
  const { status: before } = await ns.get('facetrainjob', name);
  await replaceKey(ns, 'wrong');
  // Each kubelet mounts the new key when it comes to it: rank 0 also says what the others meet.
  await eventually(
    async () => assert.match(await ns.kubectl('logs', rankZero), /\/checkpoints\/.*credentials are wrong/),
    10 * MINUTE,
    1_000,
  );
  const { status: without } = await ns.get('facetrainjob', name);
  await ns.waitFor(name, ({ status }) => assert(status!.progress.step > without!.progress.step));
  await replaceKey(ns, S3_KEYS.AWS_SECRET_ACCESS_KEY);
  await ns.waitFor(name, ({ status }) => assert(status!.checkpoint.step > without!.progress.step));
  const { status: after } = await ns.get('facetrainjob', name);
  assert.deepEqual([after!.attempt, after!.restarts], [before!.attempt, before!.restarts]);
}

/** A QuantizeJob whose output has a Secret with a wrong key fails with the store's answer. @param trained a job */
export async function wrongCredentialsFailAQuantization(ns: Namespace, trained: string): Promise<void> {
  const { dataset, output } = (await ns.get('facetrainjob', trained)).spec;
  await ns.apply(
    {
      apiVersion: 'v1',
      kind: 'Secret',
      metadata: { name: 'wrong' },
      stringData: { ...S3_KEYS, AWS_SECRET_ACCESS_KEY: 'wrong' },
    },
    {
      apiVersion: 'facetrain.dev/v1alpha1',
      kind: 'QuantizeJob',
      metadata: { name: 'wrong' },
      spec: {
        model: { uri: `${output.uri}/model/backbone.onnx`, s3: output.s3 },
        calibration: { dataset, images: 8 },
        output: { uri: 's3://models/wrong', s3: { ...output.s3, secretRef: { name: 'wrong' } } },
        failurePolicy: { maxRestarts: 0 },
      },
    },
  );
  const failed = await ns.reachesPhase('wrong', 'Failed', { kind: 'quantizejob' });
  assert.match(
    condition(failed, 'Failed')!.message,
    /s3:\/\/models\/wrong.*(SignatureDoesNotMatch|denied|403|signature)/is,
  );
}
