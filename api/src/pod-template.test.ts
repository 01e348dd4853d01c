import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { jobTemplateProblem, podFieldsProblem } from './pod-template.ts';

const container = (fields: object) => ({
  spec: { containers: [{ name: 'sidecar' }, { name: 'facetrain', ...fields }] },
});

describe('a field of a pod template that would have no effect is refused with its path', () => {
  const cases: Record<string, { podTemplate: object; beside?: object; want: RegExp | null }> = {
    nothing: { podTemplate: {}, want: null },
    'what Facetrain honors': {
      podTemplate: {
        metadata: { labels: { team: 'faces' }, annotations: { note: 'x' }, creationTimestamp: null },
        spec: {
          restartPolicy: 'Never',
          nodeSelector: { gpu: 'a100' },
          automountServiceAccountToken: true,
          securityContext: { runAsNonRoot: true, seccompProfile: { type: 'Localhost' } },
          containers: [
            {
              name: 'facetrain',
              image: 'mine:2',
              command: ['sh'],
              env: [{ name: 'NCCL_DEBUG', value: 'INFO' }],
              resources: { limits: { cpu: '500m', memory: '1Gi' }, claims: [{ name: 'gpu' }] },
              securityContext: { capabilities: { add: ['IPC_LOCK'] }, privileged: false },
            },
            {
              name: 'sidecar',
              args: ['x'],
              env: [{ name: 'RANK', value: '7' }],
              securityContext: { privileged: true },
            },
          ],
        },
      },
      beside: { resources: { limits: { memory: '1Gi' } }, image: 'mine:2' },
      want: null,
    },
    'nodeSelector one level too high': {
      podTemplate: { nodeSelector: { gpu: 'a100' } },
      want: /^nodeSelector: a pod template has only metadata and spec; move it to spec\.nodeSelector$/,
    },
    'labels one level too high': {
      podTemplate: { labels: { a: 'b' } },
      want: /^labels: .*; move it to metadata\.labels$/,
    },
    'a name': { podTemplate: { metadata: { name: 'x' } }, want: /^metadata\.name: / },
    'an unknown field of metadata': { podTemplate: { metadata: { label: {} } }, want: /^metadata\.label: / },
    'a label of ours': {
      podTemplate: { metadata: { labels: { 'facetrain.dev/rank': '9' } } },
      want: /^metadata\.labels: Facetrain sets facetrain\.dev\/rank itself/,
    },
    'the label of the manager': {
      podTemplate: { metadata: { labels: { 'app.kubernetes.io/managed-by': 'Helm' } } },
      want: /^metadata\.labels: /,
    },
    restartPolicy: { podTemplate: { spec: { restartPolicy: 'OnFailure' } }, want: /^spec\.restartPolicy: OnFailure; / },
    hostname: { podTemplate: { spec: { hostname: 'x' } }, want: /^spec\.hostname: / },
    subdomain: { podTemplate: { spec: { subdomain: 'x' } }, want: /^spec\.subdomain: / },
    root: {
      podTemplate: { spec: { securityContext: { runAsNonRoot: false } } },
      want: /^spec\.securityContext\.runAsNonRoot: false; /,
    },
    'no seccomp': {
      podTemplate: { spec: { securityContext: { seccompProfile: { type: 'Unconfined' } } } },
      want: /^spec\.securityContext\.seccompProfile\.type: Unconfined; /,
    },
    args: { podTemplate: container({ args: ['--mine'] }), want: /^spec\.containers\[1\]\.args: .*command/ },
    terminationMessagePath: {
      podTemplate: container({ terminationMessagePath: '/x' }),
      want: /^spec\.containers\[1\]\.terminationMessagePath: /,
    },
    'restartPolicy of the container': {
      podTemplate: container({ restartPolicy: 'Always' }),
      want: /^spec\.containers\[1\]\.restartPolicy: /,
    },
    'another image': {
      podTemplate: container({ image: 'mine:2' }),
      beside: { image: 'mine:3' },
      want: /^spec\.containers\[1\]\.image: mine:2, and the image beside podTemplate is mine:3; /,
    },
    'another amount': {
      podTemplate: container({ resources: { limits: { cpu: 2 } } }),
      beside: { resources: { limits: { cpu: '3' } } },
      want: /^spec\.containers\[1\]\.resources\.limits: cpu is 2, and 3 beside podTemplate; /,
    },
    'the same amount, written otherwise': {
      podTemplate: container({ resources: { limits: { cpu: 2 } } }),
      beside: { resources: { limits: { cpu: '2' } } },
      want: null,
    },
    'a variable of ours': {
      podTemplate: container({ env: [{ name: 'A' }, { name: 'WORLD_SIZE', value: '8' }] }),
      want: /^spec\.containers\[1\]\.env\[1\]\.name: Facetrain sets WORLD_SIZE itself/,
    },
    privileged: {
      podTemplate: container({ securityContext: { privileged: true } }),
      want: /^spec\.containers\[1\]\.securityContext\.privileged: true; /,
    },
    'a writable root file system': {
      podTemplate: container({ securityContext: { readOnlyRootFilesystem: false } }),
      want: /^spec\.containers\[1\]\.securityContext\.readOnlyRootFilesystem: false; /,
    },
  };
  for (const [name, { podTemplate, beside = {}, want }] of Object.entries(cases))
    test(name, () => {
      const problem = podFieldsProblem('spec.trainers', { ...beside, podTemplate });
      if (want === null) return assert.equal(problem, null);
      assert(problem !== null);
      assert(problem.startsWith('spec.trainers.podTemplate.'), problem);
      assert.match(problem.slice('spec.trainers.podTemplate.'.length), want);
    });
});

test('a quantizer gets the credentials of its output as variables, which a template must not set', () => {
  const container = { name: 'facetrain', env: [{ name: 'AWS_ACCESS_KEY_ID', value: 'x' }] };
  const quantizer = { podTemplate: { spec: { containers: [container] } } };
  const output = { s3: { secretRef: { name: 'aws' } } };
  const want =
    /podTemplate\.spec\.containers\[0\]\.env\[0\]\.name: Facetrain sets AWS_ACCESS_KEY_ID itself; remove it$/;
  assert.match(jobTemplateProblem({ quantizer, output })!, want);
  assert.match(jobTemplateProblem({ quantize: { quantizer, output } })!, want);
  assert.equal(jobTemplateProblem({ quantizer, output: { s3: {} } }), null);
  // Without an output of its own it writes to that of the training.
  assert.match(jobTemplateProblem({ quantize: { quantizer }, output })!, want);
  assert.equal(jobTemplateProblem({ quantize: { quantizer, output: { s3: {} } }, output }), null);
});

test('a quantizer has a host name of its own, and no ranks', () => {
  const podTemplate = { spec: { hostname: 'x', containers: [{ name: 'facetrain', env: [{ name: 'RANK' }] }] } };
  assert.equal(jobTemplateProblem({ quantizer: { podTemplate } }), null);
  assert.match(jobTemplateProblem({ quantize: { quantizer: { podTemplate: { volumes: [] } } } })!, /^spec\.quantize\./);
});
