/** deploy/kustomize: Kustomize renames what jobs refer to, and sets their images. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { parseAllDocuments, stringify } from 'yaml';
import { root, tools } from '../../hack/lib/paths.mjs';

const EXAMPLES = join(root, 'docs', 'reference', 'examples');
/** References of every kind, as a pod template may have them. */
const PARTS = {
  env: [
    { name: 'A', valueFrom: { secretKeyRef: { name: 'mine', key: 'a' } } },
    { name: 'B', valueFrom: { configMapKeyRef: { name: 'mine', key: 'b' } } },
  ],
  envFrom: [{ secretRef: { name: 'mine' } }, { configMapRef: { name: 'mine' } }],
};
const TEMPLATE = {
  spec: {
    containers: [{ name: 'facetrain', image: 'example/trainer:1', ...PARTS }],
    initContainers: [{ name: 'warm', ...PARTS }],
    imagePullSecrets: [{ name: 'mine' }],
    volumes: [
      { name: 'a', secret: { secretName: 'mine' } },
      { name: 'b', configMap: { name: 'mine' } },
      { name: 'c', projected: { sources: [{ secret: { name: 'mine' } }, { configMap: { name: 'mine' } }] } },
    ],
  },
};
const job = (kind: string, spec: object) => ({
  apiVersion: 'facetrain.dev/v1alpha1',
  kind,
  metadata: { name: 'templates' },
  spec,
});

test('generated Secrets and ConfigMaps are renamed, and images replaced, wherever a job names them', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'facetrain-kustomize-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const app = join(folder, 'app');
  await mkdir(app);
  await cp(join(root, 'deploy', 'kustomize'), join(folder, 'component'), { recursive: true });
  for (const kind of ['facetrainjob', 'quantizejob'])
    await cp(join(EXAMPLES, `${kind}-full.yaml`), join(app, `${kind}.yaml`));
  const pod = { image: 'example/trainer:1', podTemplate: TEMPLATE };
  const templates = [
    job('FaceTrainJob', { trainers: pod, quantize: { quantizer: pod } }),
    job('QuantizeJob', { quantizer: pod }),
  ];
  await writeFile(join(app, 'templates.yaml'), templates.map((one) => stringify(one)).join('---\n'));
  await writeFile(
    join(app, 'kustomization.yaml'),
    stringify({
      resources: ['facetrainjob.yaml', 'quantizejob.yaml', 'templates.yaml'],
      components: ['../component'],
      secretGenerator: ['s3-credentials', 'mine'].map((name) => ({ name, literals: ['a=b'] })),
      configMapGenerator: [{ name: 'mine', literals: ['c=d'] }],
      images: [{ name: 'example/trainer', newName: 'registry.example.com/other', newTag: '9' }],
    }),
  );
  const { stdout } = await promisify(execFile)(join(tools, 'kubectl'), ['kustomize', app]);
  const objects = parseAllDocuments(stdout).map((document) => document.toJS() as { kind: string; spec?: object });
  const jobs = JSON.stringify(objects.filter(({ spec }) => spec !== undefined));
  assert.equal(jobs.match(/"(s3-credentials|mine)"/), null);
  const count = (pattern: RegExp) => [...jobs.matchAll(pattern)].length;
  // Three templates with 13 references each.
  assert.equal(count(/"mine-[a-z0-9]{10}"/g), 3 * 13);
  const sources = ['facetrainjob', 'quantizejob'].map((kind) =>
    readFileSync(join(EXAMPLES, `${kind}-full.yaml`), 'utf8'),
  );
  const references = [...sources.join().matchAll(/secretRef: \{name: s3-credentials\}/g)].length;
  assert(references > 3);
  assert.equal(count(/"secretRef":\{"name":"s3-credentials-[a-z0-9]{10}"\}/g), references);
  assert.equal(count(/example\/trainer:1/g), 0);
  assert.equal(count(/registry\.example\.com\/other:9/g), 3 * 2);
});
