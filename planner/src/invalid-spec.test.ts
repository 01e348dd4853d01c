import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { API_VERSION, type Condition, FaceTrainJob, type FaceTrainJobStatus, parseDocument } from '@facetrain/api';
import { invalidStatus, isOfNewerVersion, refusalMessage } from './invalid-spec.ts';
import type { JobKind } from './names.ts';
import { after, at, makeJob } from './testing/builders.ts';

const condition = (type: string, status: Condition['status'], reason: string): Condition => ({
  type,
  status,
  reason,
  message: '',
  lastTransitionTime: at(0),
  observedGeneration: 1,
});
const RUNNING: FaceTrainJobStatus = {
  phase: 'Running',
  attempt: 1,
  attemptStartTime: at(0),
  conditions: [
    condition('Ready', 'True', 'PodsReady'),
    condition('Running', 'True', 'Running'),
    condition('acme.example/Seen', 'True', 'Seen'),
  ],
};

describe('a spec that the schema refuses', () => {
  test('of a new job: Ready and Stalled report it, and the phase is Pending', () => {
    const status = invalidStatus<FaceTrainJobStatus>({}, 3, 'faces: spec.epochs: 0; must be at least 1', after(9));
    const cause = {
      reason: 'InvalidSpec',
      message: 'faces: spec.epochs: 0; must be at least 1',
      observedGeneration: 3,
      lastTransitionTime: at(9),
    };
    assert.deepEqual(status, {
      observedGeneration: 3,
      phase: 'Pending',
      conditions: [
        { type: 'Ready', status: 'False', ...cause },
        { type: 'Stalled', status: 'True', ...cause },
      ],
    });
  });
  test('of a running job: the attempt number and the other conditions stay', () => {
    const { conditions, ...rest } = invalidStatus(RUNNING, 3, 'why', after(9));
    assert.deepEqual(rest, { phase: 'Running', attempt: 1, attemptStartTime: at(0), observedGeneration: 3 });
    assert.deepEqual(
      conditions!.map(({ type, status }) => `${type} ${status}`),
      ['Ready False', 'Stalled True', 'Running True', 'acme.example/Seen True'],
    );
  });
  test('gives an equal status the second time', () => {
    const once = invalidStatus(RUNNING, 3, 'why', after(9));
    assert.deepEqual(invalidStatus(once, 3, 'why', after(99)), once);
  });
  for (const type of ['Succeeded', 'Failed']) {
    test(`of a job that has ${type}: the status stays, or the job would run again`, () => {
      const before: FaceTrainJobStatus = {
        phase: type as 'Succeeded',
        completionTime: at(5),
        conditions: [condition('Ready', 'True', type), condition(type, 'True', type)],
      };
      assert.equal(invalidStatus(before, 3, 'why', after(9)), before);
    });
  }
});

describe('the message of a refused spec says how to correct it', () => {
  const cases: Record<string, { kind: JobKind; message: string; isFinal: boolean }> = {
    'in a field that changes': {
      kind: 'FaceTrainJob',
      message: 'a: spec.epochs: 0; must be at least 1',
      isFinal: false,
    },
    'in one that never changes': { kind: 'FaceTrainJob', message: 'a: spec.output.uri: "x"; no', isFinal: true },
    'in several': {
      kind: 'FaceTrainJob',
      message: 'a: no\n  spec.epochs: 0\n  spec.checkpoint.uri: "x"',
      isFinal: true,
    },
    'beside one that never changes': {
      kind: 'FaceTrainJob',
      message: 'a: spec.checkpoint.keep: 0; no',
      isFinal: false,
    },
    'in one of another kind': { kind: 'QuantizeJob', message: 'a: spec.output.uri: "x"; no', isFinal: false },
  };
  for (const [name, { kind, message, isFinal }] of Object.entries(cases))
    test(name, () => {
      const told = refusalMessage(kind, message);
      assert(told.startsWith(message));
      assert.equal(/; this field cannot be changed: delete the job/.test(told), isFinal);
    });
  test('where a newer CustomResourceDefinition has a field, which may be a default', () => {
    const spec = makeJob().parse();
    const told = (...fields: object[]) => {
      const newer = { apiVersion: API_VERSION, kind: 'FaceTrainJob', metadata: { name: 'a' } };
      const document = { ...newer, spec: { ...spec, model: Object.assign({ ...spec.model }, ...fields) } };
      try {
        parseDocument(FaceTrainJob, document, 'a', 'InvalidManifest');
      } catch (error) {
        return refusalMessage('FaceTrainJob', (error as Error).message);
      }
      return assert.fail('accepted');
    };
    const upgrade = /; the CustomResourceDefinition is newer than this operator: upgrade the operator$/;
    for (const message of [told({ depth: 1 }), told({ depth: 1, height: 2 })]) {
      assert.match(message, /spec\.model\.depth: unknown field;/);
      assert.match(message, upgrade);
      assert.doesNotMatch(message, /delete the job/);
      assert(isOfNewerVersion(message));
    }
    const both = told({ depth: 1, width: -1 });
    assert.match(both, /; this field cannot be changed: delete the job/);
    assert(!isOfNewerVersion(both));
    assert(!isOfNewerVersion('a: spec.epochs: 0; must be at least 1'));
  });
});
