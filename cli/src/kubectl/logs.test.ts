import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Cluster } from './cluster.ts';
import { type LogsOptions, writeLogs } from './logs.ts';

test('the log of a rank that no attempt has is not waited for', async () => {
  const placeholder = {
    metadata: { name: 'faces-0-2', labels: { 'facetrain.dev/rank': '2', 'facetrain.dev/placeholder': 'true' } },
    spec: { nodeName: 'node-1' },
  };
  const cluster = {
    namespace: 'faces',
    jobOfEitherKind: async () => ({
      kind: 'FaceTrainJob',
      job: { metadata: { uid: 'job' }, spec: { trainers: { replicas: 2, elastic: { maxReplicas: 3 } } } },
    }),
    pods: async () => [placeholder],
  } as unknown as Cluster;
  const follow = (rank: number, signal: AbortSignal) =>
    writeLogs(cluster, 'faces', { rank, follow: true }, async () => {}, assert.fail, signal);
  await assert.rejects(follow(3, new AbortController().signal), /faces: no pod of rank 3; it has no pods/);
  // Rank 2 may come. What holds its place has no log.
  await assert.rejects(follow(2, AbortSignal.timeout(100)), { name: /AbortError|TimeoutError/ });
});

test('a log that ends while its container runs is asked for again from there, until the container ends', async () => {
  const line = (second: number, text: string) => `2026-01-01T00:00:0${second}.500000000Z ${text}\n`;
  /** What each request for the log answers with. An error breaks the connection. */
  const answers: (string | Error)[][] = [
    [line(1, 'one'), line(2, 'two'), line(2, 'again'), '2026-01-01T00:00:03.5'],
    // sinceTime has whole seconds.
    [line(2, 'two'), line(2, 'again'), line(2, 'third'), new Error('other side closed')],
    [line(2, 'two') + line(2, 'again'), `${line(2, 'third')}${line(3, 'last').slice(0, 31)}`],
    // The kubelet has words of its own, without a time.
    ['failed to read the log\n', line(3, 'last')],
    [line(3, 'last'), line(4, 'end').slice(0, -1)],
  ];
  const asked: unknown[] = [];
  const pod = {
    metadata: { name: 'faces-0-0', uid: 'pod', labels: { 'facetrain.dev/rank': '0', 'facetrain.dev/attempt': '0' } },
    spec: { nodeName: 'node-1' },
    status: { phase: 'Running' },
  };
  const job = { metadata: { uid: 'job' }, spec: {}, status: {} };
  const cluster = {
    namespace: 'faces',
    jobOfEitherKind: async () => ({ kind: 'FaceTrainJob', job: structuredClone(job) }),
    pods: async () => [structuredClone(pod)],
    client: {
      async *stream(_path: string, query: object) {
        asked.push(query);
        const answer = answers.shift()!;
        if (answers.length === 0) job.status = { completionTime: '2026-01-01T00:00:04Z' };
        if (answers.length <= 1) pod.status.phase = 'Succeeded';
        for (const part of answer) {
          if (part instanceof Error) throw part;
          yield Buffer.from(part);
        }
      },
    },
  } as unknown as Cluster;
  let text = '';
  const write = async (data: Buffer) => void (text += String(data));
  await writeLogs(cluster, 'faces', { rank: 0, follow: true, tail: 7 }, write, () => {}, AbortSignal.timeout(60_000));
  assert.equal(text, 'one\ntwo\nagain\nthird\nfailed to read the log\nlast\nend');
  const followed = { container: 'facetrain', follow: true, timestamps: true };
  assert.deepEqual(asked, [
    { ...followed, tailLines: 7 },
    { ...followed, sinceTime: '2026-01-01T00:00:02.500000000Z' },
    { ...followed, sinceTime: '2026-01-01T00:00:02.500000000Z' },
    { ...followed, sinceTime: '2026-01-01T00:00:02.500000000Z' },
    { ...followed, sinceTime: '2026-01-01T00:00:03.500000000Z' },
  ]);
});

test('the log goes on when the kubelet starts the container again in its pod', async () => {
  const line = (second: number, text: string) => `2026-01-01T00:00:0${second}.500000000Z ${text}\n`;
  const container = { name: 'facetrain', restartPolicyRules: [{ exitCodes: { values: [4, 137] } }] };
  const ended = (exitCode: number) => [{ name: 'facetrain', state: { terminated: { exitCode } } }];
  const answers = [
    { log: line(1, 'killed'), after: ended(137) },
    { log: '', after: [{ name: 'facetrain', state: {}, restartCount: 1 }] },
    { log: line(4, 'again'), after: ended(1) },
    { log: line(4, 'again'), after: ended(1) },
  ];
  const job = { metadata: { uid: 'job' }, spec: {}, status: {} };
  const pod = {
    metadata: { name: 'faces-0-0', uid: 'pod', labels: { 'facetrain.dev/rank': '0', 'facetrain.dev/attempt': '0' } },
    spec: { nodeName: 'node-1', containers: [container] },
    status: { phase: 'Running', containerStatuses: [] as object[] },
  };
  const cluster = {
    namespace: 'faces',
    jobOfEitherKind: async () => ({ kind: 'FaceTrainJob', job: structuredClone(job) }),
    pods: async () => [structuredClone(pod)],
    client: {
      async *stream() {
        const { log, after } = answers.shift()!;
        yield Buffer.from(log);
        pod.status.containerStatuses = after;
        if (answers.length === 0) job.status = { completionTime: '2026-01-01T00:00:04Z' };
      },
    },
  } as unknown as Cluster;
  let text = '';
  const write = async (data: Buffer) => void (text += String(data));
  await writeLogs(cluster, 'faces', { rank: 0, follow: true }, write, () => {}, AbortSignal.timeout(60_000));
  assert.equal(text, 'killed\nagain\n');
  assert.deepEqual(answers, []);
});

test('of a pod with several ranks, the lines of one', async () => {
  const own = (rank: number) => `{"level":"info","job":"faces","rank":${rank},"msg":"\\"rank\\":7"}\n`;
  const lines = [own(4), '{"level":"warn","failedRank":4}\n', own(5), 'rank 4: NCCL INFO\n', 'rank 5: NCCL\n', own(45)];
  const queries: object[] = [];
  const status = {};
  const pod = {
    metadata: { name: 'faces-0-1', uid: 'pod', labels: { 'facetrain.dev/rank': '1', 'facetrain.dev/attempt': '0' } },
    spec: { nodeName: 'node-1', containers: [{ name: 'facetrain', args: ['train', '--ranks', '4'] }] },
    status: { phase: 'Running' },
  };
  const cluster = {
    namespace: 'faces',
    jobOfEitherKind: async () => ({
      kind: 'FaceTrainJob',
      job: { metadata: { uid: 'job' }, spec: { trainers: { replicas: 2, ranksPerPod: 4 } }, status },
    }),
    pods: async () => [pod],
    client: {
      async *stream(_path: string, query: object) {
        queries.push(query);
        for (const line of lines) yield Buffer.from(line);
        if (breaks) throw Object.assign(new Error('reset'), { code: 'ECONNRESET' });
      },
    },
    words: (_subject: string, error: unknown) => error,
  } as unknown as Cluster;
  let breaks = false;
  const logOf = async (rank: number, options: Partial<LogsOptions> = {}): Promise<string> => {
    let text = '';
    const write = async (data: Buffer) => void (text += String(data));
    await writeLogs(cluster, 'faces', { rank, ...options }, write, () => {}, AbortSignal.timeout(60_000));
    return text;
  };
  assert.equal(await logOf(4), lines[0]! + lines[1]! + lines[3]!);
  assert.equal(await logOf(5), lines[1]! + lines[2]! + lines[4]!);
  assert.equal(await logOf(5, { tail: 2 }), lines[2]! + lines[4]!);
  assert.deepEqual(queries.at(-1), { container: 'facetrain' }, 'the API server would count the lines of all ranks');

  pod.status.phase = 'Succeeded';
  Object.assign(status, { completionTime: '2026-01-01T00:00:09Z' });
  for (const [index, line] of lines.entries()) lines[index] = `2026-01-01T00:00:0${index}.5Z ${line}`;
  assert.equal(await logOf(5, { follow: true, tail: 1 }), 'rank 5: NCCL\n');
  const followed = { container: 'facetrain', follow: true, timestamps: true };
  assert.deepEqual(queries.slice(-2), [
    { container: 'facetrain', timestamps: true },
    { ...followed, sinceTime: '2026-01-01T00:00:05.5Z' },
  ]);
  // With the next request from there on, the lines before it would be missing.
  breaks = true;
  await assert.rejects(logOf(5, { follow: true, tail: 1 }), { code: 'ECONNRESET' });
  await assert.rejects(logOf(3), /no pod of rank 3; there are pods of ranks 4-7 of attempt 0/);
  await assert.rejects(logOf(8), /no pod of rank 8/);
});
