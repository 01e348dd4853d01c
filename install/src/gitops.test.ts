/**
 * The health of a job in GitOps tools, at each stage that the planner can report. Argo CD: health.lua, run by
 * gopher-lua, the interpreter of Argo CD. Flux: the CEL expressions of its example, evaluated by an API server, which
 * has the same CEL.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';
import type { FaceTrainJobStatus } from '@facetrain/api';
import { faceTrainJobs } from '@facetrain/operator/controllers/resources';
import { ApiError } from '@facetrain/operator/runtime/api-error';
import { ControlPlane } from '@facetrain/operator/testing/control-plane';
import { eventually } from '@facetrain/operator/testing/eventually';
import { planFaceTrainJob } from '@facetrain/planner/facetrainjob/plan-facetrainjob';
import { invalidStatus } from '@facetrain/planner/invalid-spec';
import type { ObservedFaceTrainJob, ObservedPod } from '@facetrain/planner/observed';
import { at, type FaceTrainJobBuilder, after as later, makeJob, makePod } from '@facetrain/planner/testing/builders';
import { testEnvironment } from '@facetrain/planner/testing/test-environment';
import { parse } from 'yaml';
import { root, tools } from '../../hack/lib/paths.mjs';

const folder = join(root, 'docs', 'gitops');

/** The status after some rounds of planning, each from the status of the one before. */
function planned(
  job: FaceTrainJobBuilder,
  pods: ObservedPod[] = [],
  more: Partial<ObservedFaceTrainJob> = {},
): FaceTrainJobStatus {
  let status: FaceTrainJobStatus =
    pods.length === 0 ? {} : { observedGeneration: 1, attempt: 0, startTime: at(0), attemptStartTime: at(0) };
  for (let round = 0; round < 5; round++)
    status = planFaceTrainJob(job.observe(status, pods, more), later(10), testEnvironment).status;
  return status;
}

const RUNNING = [makePod(0).running().build(), makePod(1).running().build()];
const DONE = [makePod(0).succeeded().build(), makePod(1).succeeded().build()];
const refused = { kind: 'Pod' as const, name: 'faces-0-0', message: 'exceeded quota' };

interface Case {
  status: FaceTrainJobStatus | undefined;
  generation?: number;
  argo: string;
  message: RegExp;
  flux: 'failed' | 'current' | 'in progress';
}
const cases: Record<string, Case> = {
  'it has no status yet': { status: undefined, argo: 'Progressing', message: /not looked/, flux: 'in progress' },
  'its spec is newer than its status': {
    status: planned(makeJob(), RUNNING),
    generation: 2,
    argo: 'Progressing',
    message: /not looked/,
    flux: 'in progress',
  },
  'its pods are pending': {
    status: planned(makeJob(), [makePod(0).build(), makePod(1).build()]),
    argo: 'Progressing',
    message: /^PodsPending: /,
    flux: 'in progress',
  },
  'it runs': { status: planned(makeJob(), RUNNING), argo: 'Healthy', message: /^PodsReady: /, flux: 'in progress' },
  'it runs and its status has progress': {
    status: {
      ...planned(makeJob(), RUNNING),
      progress: { step: 12, totalSteps: 100, epoch: 1, percent: 12, lastHeartbeatTime: at(10) },
    },
    argo: 'Healthy',
    message: /^Running: step 12 of 100$/,
    flux: 'in progress',
  },
  'it restarts': {
    status: planned(makeJob(), [makePod(0).running().build(), makePod(1).failed(1, 5).build()]),
    argo: 'Progressing',
    message: /^Stopping: /,
    flux: 'in progress',
  },
  'it is suspended': {
    status: planned(makeJob().suspended()),
    argo: 'Suspended',
    message: /^Suspended: /,
    flux: 'in progress',
  },
  'it is being quantized': {
    status: planned(makeJob().quantized(), DONE),
    argo: 'Healthy',
    message: /^Quantizing: /,
    flux: 'in progress',
  },
  'it has succeeded': { status: planned(makeJob(), DONE), argo: 'Healthy', message: /^Succeeded: /, flux: 'current' },
  'it has failed': {
    status: planned(makeJob(), [makePod(0).running().build(), makePod(1).failed(2, 5).build()]),
    argo: 'Degraded',
    message: /^InputRefused: /,
    flux: 'failed',
  },
  'the server refuses its pods': {
    status: planned(makeJob(), [], { refused }),
    argo: 'Degraded',
    message: /exceeded quota/,
    flux: 'failed',
  },
  'its spec is invalid': {
    status: invalidStatus({}, 1, 'spec.epochs: 0', later(0)),
    argo: 'Degraded',
    message: /^InvalidSpec: spec.epochs: 0/,
    flux: 'failed',
  },
};
const objectOf = ({ status, generation = 1 }: Case) => ({
  metadata: { name: 'faces', generation },
  ...(status && { status: JSON.parse(JSON.stringify(status)) as object }),
});

describe('Argo CD', () => {
  /** The value as a Lua literal. The escapes of JSON that occur in statuses are also Lua's. */
  const literal = (value: unknown): string => {
    if (Array.isArray(value)) return `{${value.map(literal).join(',')}}`;
    if (typeof value === 'object' && value !== null)
      return `{${Object.entries(value)
        .map(([name, field]) => `[${JSON.stringify(name)}]=${literal(field)}`)
        .join(',')}}`;
    return JSON.stringify(value);
  };

  for (const [name, wanted] of Object.entries(cases)) {
    test(`${wanted.argo} when ${name}`, async (t) => {
      const scratch = await mkdtemp(join(tmpdir(), 'facetrain-lua-'));
      t.after(() => rm(scratch, { recursive: true }));
      const program = join(scratch, 'run.lua');
      const library =
        'ipairs = ipairs, pairs = pairs, type = type, tostring = tostring, tonumber = tonumber, table = table';
      const lines = [
        `local health = assert(loadfile(${JSON.stringify(join(folder, 'health.lua'))}))`,
        `local hs = setfenv(health, {obj = ${literal(objectOf(wanted))}, ${library}})()`,
        'print(hs.status)',
        'print(hs.message)',
      ];
      await writeFile(program, lines.join('\n'));
      const { stdout } = await promisify(execFile)(join(tools, 'glua'), [program]);
      const [status, message] = stdout.split('\n');
      assert.equal(status, wanted.argo);
      assert.match(message!, wanted.message);
    });
  }
});

describe('Flux', () => {
  const KEYS = ['failed', 'current'] as const;
  let plane: ControlPlane;
  before(async () => {
    plane = await ControlPlane.start();
    await plane.installCrds();
    const { spec } = parse(await readFile(join(folder, 'flux-kustomization.yaml'), 'utf8')) as {
      spec: { healthCheckExprs: ({ kind: string } & Record<(typeof KEYS)[number], string>)[] };
    };
    const [ofTraining, ofQuantization] = spec.healthCheckExprs;
    assert.deepEqual({ ...ofQuantization, kind: 'FaceTrainJob' }, ofTraining);
    // Flux evaluates the expressions in this order and takes the first that is true (fluxcd/pkg, runtime/cel). The
    // policy refuses every status, with the name of that expression as its message. In Flux the fields of the object
    // are variables; in a policy they are fields of `object`.
    const ofObject = (expression: string) => expression.replace(/^status\./, 'object.?status.');
    const registration = '/apis/admissionregistration.k8s.io/v1';
    await plane.client.post(`${registration}/validatingadmissionpolicies`, {
      apiVersion: 'admissionregistration.k8s.io/v1',
      kind: 'ValidatingAdmissionPolicy',
      metadata: { name: 'flux' },
      spec: {
        failurePolicy: 'Fail',
        matchConstraints: {
          resourceRules: [
            {
              apiGroups: ['facetrain.dev'],
              apiVersions: ['*'],
              operations: ['UPDATE'],
              resources: ['facetrainjobs/status'],
            },
          ],
        },
        variables: KEYS.map((key) => ({ name: key, expression: ofObject(ofTraining![key]) })),
        validations: [
          {
            expression: 'false',
            messageExpression: `${KEYS.map((key) => `variables.${key} ? '${key}' : `).join('')}'in progress'`,
          },
        ],
      },
    });
    await plane.client.post(`${registration}/validatingadmissionpolicybindings`, {
      apiVersion: 'admissionregistration.k8s.io/v1',
      kind: 'ValidatingAdmissionPolicyBinding',
      metadata: { name: 'flux' },
      spec: { policyName: 'flux', validationActions: ['Deny'] },
    });
  });
  after(() => plane?.stop());

  for (const [index, [name, wanted]] of Object.entries(cases).entries()) {
    test(`${wanted.flux} when ${name}`, async () => {
      const job = `faces${index}`;
      const spec = {
        dataset: { uri: 'pvc://data/faces' },
        model: { backbone: 'mobilefacenet' },
        output: { uri: 'pvc://data/out' },
        globalBatchSize: 64,
      };
      await plane.client.create(faceTrainJobs, 'default', {
        apiVersion: 'facetrain.dev/v1alpha1',
        kind: 'FaceTrainJob',
        metadata: { name: job },
        spec,
      });
      const { status = {} } = objectOf(wanted) as { status?: object };
      if (wanted.generation === 2) await plane.client.patch(faceTrainJobs, 'default', job, { spec: { suspend: true } });
      await eventually(async () => {
        const answer = await plane.client
          .patch(faceTrainJobs, 'default', job, { status }, 'status')
          .catch((error: unknown) => error);
        assert(answer instanceof ApiError, 'the policy is not in force yet');
        assert.match(answer.serverMessage, new RegExp(`denied request: ${wanted.flux}$`));
      });
    });
  }
});
