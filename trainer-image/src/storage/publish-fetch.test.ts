/** Publishing and fetching, against a real S3 server. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { CreateMultipartUploadCommand, HeadObjectCommand, ListMultipartUploadsCommand } from '@aws-sdk/client-s3';
import { ExitCode, FacetrainError, type StorageAddress } from '@facetrain/api';
import { freePorts } from '../../../hack/lib/free-ports.mjs';
import { startFaultyS3 } from '../testing/s3-faults.ts';
import { AWS_ENVIRONMENT, CREDENTIALS, type S3Proxy, type S3Server, startS3Server } from '../testing/s3-server.ts';
import { fetchTo } from './fetch.ts';
import { checkDestination, publish, withdraw } from './publish.ts';
import { s3Client, s3Error } from './s3.ts';

const NAMES = ['model.int7.onnx', 'report.json', 'manifest.json'];
/** Larger than a part of lib-storage's uploads, so it is uploaded in several parts. */
const LARGE = Buffer.alloc(11 * 2 ** 20, 'int7');

let server: S3Server;
let scratch: string;
let folder: string;

before(async () => {
  Object.assign(process.env, AWS_ENVIRONMENT);
  server = await startS3Server('models');
});
after(() => server.stop());
beforeEach(async () => {
  Object.assign(process.env, CREDENTIALS);
  scratch = await mkdtemp(join(tmpdir(), 'facetrain-storage-'));
  folder = join(scratch, 'artifact');
  await mkdir(folder);
  await writeFile(join(folder, NAMES[0]!), LARGE);
  await writeFile(join(folder, NAMES[1]!), '{"report":true}');
  await writeFile(join(folder, NAMES[2]!), '{"manifest":true}');
});
afterEach(() => rm(scratch, { recursive: true, force: true }));

/** The FacetrainError that a call fails with. */
async function failure(call: Promise<unknown>): Promise<FacetrainError> {
  const error = await call.then(
    () => assert.fail('it did not fail'),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof FacetrainError, `not a FacetrainError: ${(error as Error).stack}`);
  return error;
}

/** Where the files of an address of these tests lie: the object store is a folder, too. */
function folderOf({ uri }: StorageAddress): string {
  return uri.startsWith('file://') ? uri.slice('file://'.length) : join(server.folder, uri.slice('s3://'.length));
}

for (const [scheme, address] of Object.entries({
  'file://': (): StorageAddress => ({
    uri: `file://${join(scratch, 'published')}`,
    endpoint: null,
    region: null,
    forcePathStyle: false,
  }),
  's3://': (): StorageAddress => server.address('s3://models/faces/v1'),
})) {
  describe(scheme, () => {
    test('published files can be fetched, and publishing again writes nothing', async () => {
      const first = await publish(folder, NAMES, address());
      assert.deepEqual(
        first.map(({ name, written }) => ({ name, written })),
        NAMES.map((name) => ({ name, written: true })),
      );
      const second = await publish(folder, NAMES, address());
      assert.deepEqual(
        second.map(({ written }) => written),
        [false, false, false],
      );
      assert.deepEqual(
        second.map(({ file }) => file),
        first.map(({ file }) => file),
      );

      const to = join(scratch, 'fetched');
      const fetched = await fetchTo({ ...address(), to });
      assert.deepEqual(
        fetched.map(({ written }) => written),
        [true, true, true],
      );
      assert.deepEqual((await readdir(to)).sort(), [...NAMES].sort());
      for (const name of NAMES)
        assert.deepEqual(await readFile(join(to, name)), await readFile(join(folder, name)), name);
      assert.deepEqual(
        (await fetchTo({ ...address(), to })).map(({ written }) => written),
        [false, false, false],
      );
    });

    test('a file that has changed is written again, and the manifest, and no other', async () => {
      await publish(folder, NAMES, address());
      await writeFile(join(folder, 'report.json'), '{"report":null}');
      const written = (await publish(folder, NAMES, address())).filter((file) => file.written).map(({ name }) => name);
      assert.deepEqual(written, ['report.json', 'manifest.json']);
      const to = join(scratch, 'one.json');
      await fetchTo({ ...address(), uri: `${address().uri}/report.json`, to });
      assert.equal(await readFile(to, 'utf8'), '{"report":null}');
    });

    test('while files are replaced there is no manifest, also when that fails', async () => {
      const place = { ...address(), uri: `${address().uri}/replaced` };
      await publish(folder, NAMES, place);
      await writeFile(join(folder, 'model.int7.onnx'), 'another model');
      await writeFile(join(folder, 'report.json'), '{"report":"another"}');
      await writeFile(join(folder, 'manifest.json'), '{"manifest":"another"}');
      // In the way of the second file.
      await rm(join(folderOf(place), 'report.json'));
      await mkdir(join(folderOf(place), 'report.json', 'x'), { recursive: true });
      await assert.rejects(publish(folder, NAMES, place));
      assert.equal(await readFile(join(folderOf(place), 'model.int7.onnx'), 'utf8'), 'another model');
      assert.deepEqual((await readdir(folderOf(place))).sort(), ['model.int7.onnx', 'report.json']);

      await rm(join(folderOf(place), 'report.json'), { recursive: true });
      const written = (await publish(folder, NAMES, place)).filter((file) => file.written).map(({ name }) => name);
      assert.deepEqual(written, ['report.json', 'manifest.json']);
      for (const name of NAMES)
        assert.deepEqual(await readFile(join(folderOf(place), name)), await readFile(join(folder, name)), name);
    });

    test('files are withdrawn, also those that are not there', async () => {
      const place = { ...address(), uri: `${address().uri}/withdrawn` };
      await publish(folder, NAMES, place);
      for (let time = 0; time < 2; time++) await withdraw(['report.json', 'none/report.json'], place);
      assert.deepEqual((await readdir(folderOf(place))).sort(), NAMES.filter((name) => name !== 'report.json').sort());
    });

    test('a new manifest over the same files replaces the old one at once', async () => {
      const place = { ...address(), uri: `${address().uri}/same` };
      await publish(folder, NAMES, place);
      await writeFile(join(folder, 'manifest.json'), '{"manifest":"another"}');
      const written = (await publish(folder, NAMES, place)).filter((file) => file.written).map(({ name }) => name);
      assert.deepEqual(written, ['manifest.json']);
    });
  });
}

/** An object store that refuses one method. @param head its answer to HEAD: 404, it is empty */
async function storeWithout(method: 'PUT' | 'DELETE', head: 200 | 404) {
  const requests: string[] = [];
  const store = createServer((request, response) => {
    requests.push(`${request.method} ${new URL(request.url!, 'http://x').pathname}`);
    const isRead = request.method === 'HEAD' || request.url!.includes('GetObject');
    const status = isRead ? head : request.method === method ? 403 : 200;
    const code = { 403: 'AccessDenied', 404: 'NoSuchKey', 200: '' }[status];
    const body = code && `<Error><Code>${code}</Code><Message>${code}</Message></Error>`;
    request.resume().on('end', () => response.writeHead(status, { etag: '"1"' }).end(body));
  }).listen(0, '127.0.0.1');
  await once(store, 'listening');
  after(() => store.close());
  return { endpoint: `http://127.0.0.1:${(store.address() as AddressInfo).port}`, requests };
}

/** @returns the requests that change an empty object store, of a publication to it */
async function publishWithout(method: 'PUT' | 'DELETE'): Promise<{ requests: string[]; published: Promise<unknown> }> {
  const { endpoint, requests } = await storeWithout(method, 404);
  const published = publish(folder, ['report.json', 'manifest.json'], { ...server.address('s3://models/x'), endpoint });
  await published.catch(() => {});
  return { requests: requests.filter((line) => /^(PUT|DELETE)/.test(line)), published };
}

test('credentials that may not delete overwrite the old manifest before the first file', async () => {
  const { requests, published } = await publishWithout('DELETE');
  await published;
  assert.deepEqual(requests, [
    'PUT /models/x/manifest.json',
    'DELETE /models/x/manifest.json',
    'PUT /models/x/report.json',
    'PUT /models/x/manifest.json',
  ]);
});

test('credentials that may not delete leave a file that is withdrawn', async () => {
  const { endpoint, requests } = await storeWithout('DELETE', 200);
  await withdraw(['report.json'], { ...server.address('s3://models/x'), endpoint });
  assert.deepEqual(requests, ['HEAD /models/x/report.json', 'DELETE /models/x/report.json']);
});

test('credentials that may delete and not write leave the artifact that is there', async () => {
  const { requests, published } = await publishWithout('PUT');
  assert.match(
    (await failure(published)).message,
    /manifest.json at .*\(AccessDenied\); .*s3:PutObject and s3:DeleteObject$/,
  );
  assert.deepEqual(requests, ['PUT /models/x/manifest.json']);
});

test('objects have a content type and a digest', async () => {
  await publish(folder, NAMES, server.address('s3://models/typed'));
  const client = s3Client(server.address('s3://models'));
  const head = await client.send(new HeadObjectCommand({ Bucket: 'models', Key: 'typed/manifest.json' }));
  client.destroy();
  assert.equal(head.ContentType, 'application/json');
  assert.match(head.Metadata?.sha256 ?? '', /^[0-9a-f]{64}$/);
});

describe('an interrupted download', () => {
  test('continues where it stopped, and the whole file is checked', async () => {
    await publish(folder, NAMES, server.address('s3://models/resumed'));
    const to = join(scratch, 'model.onnx');
    const ranges: string[] = [];
    const proxy = await breakingProxy(4 * 2 ** 20, ranges);
    try {
      await fetchTo({ ...server.address('s3://models/resumed/model.int7.onnx'), endpoint: proxy.endpoint, to });
    } finally {
      proxy.close();
    }
    assert.deepEqual(await readFile(to), LARGE);
    assert.equal(ranges[0], '');
    assert.match(ranges[1]!, /^bytes=[1-9]\d*-$/);
    assert.deepEqual(await readdir(scratch), ['artifact', 'model.onnx']);
  });

  test('with a wrong start is refused, and its file is deleted', async () => {
    await publish(folder, NAMES, server.address('s3://models/damaged'));
    const to = join(scratch, 'model.onnx');
    const request = { ...server.address('s3://models/damaged/model.int7.onnx'), to };
    // One byte of the first part is changed.
    const proxy = await breakingProxy(4 * 2 ** 20, [], async () => {
      const partial = (await readdir(scratch)).find((name) => name.endsWith('.partial'))!;
      const bytes = await readFile(join(scratch, partial));
      bytes[0]! ^= 1;
      await writeFile(join(scratch, partial), bytes);
    });
    const error = await failure(fetchTo({ ...request, endpoint: proxy.endpoint }));
    proxy.close();
    assert.equal(error.code, 'StorageFailed');
    assert.match(error.message, /sha256 .* after the download/);
    assert.deepEqual(await readdir(scratch), ['artifact']);
    await fetchTo(request);
    assert.deepEqual(await readFile(to), LARGE);
  });
});

/** A proxy that cuts the first answer to a GET after `bytes`, and records the ranges of all requests. */
function breakingProxy(bytes: number, ranges: string[], onResume?: () => Promise<void>): Promise<S3Proxy> {
  let cut = false;
  return server.proxy('models', async ({ range, body, response }) => {
    ranges.push(range);
    if (cut && range) await onResume?.();
    if (cut) return void response.end(body);
    cut = true;
    response.write(body.subarray(0, bytes), () => response.destroy());
  });
}

test('an existing file with another time or size is fetched again', async () => {
  await publish(folder, NAMES, server.address('s3://models/stale'));
  const to = join(scratch, 'report.json');
  const request = { ...server.address('s3://models/stale/report.json'), to };
  await writeFile(to, '{"report":nope}');
  await utimes(to, 0, 0);
  assert.equal((await fetchTo(request))[0]!.written, true);
  assert.equal(await readFile(to, 'utf8'), '{"report":true}');
});

test('a prefix of many small objects: each in its place, and only what changed is fetched again', async () => {
  const names = Array.from({ length: 60 }, (_, i) => `ID${i % 7}/${i}.jpg`);
  for (const name of names) {
    await mkdir(join(folderOf(server.address('s3://models/many')), name, '..'), { recursive: true });
    await writeFile(join(folderOf(server.address('s3://models/many')), name), `picture ${name}`);
  }
  const request = { ...server.address('s3://models/many'), to: join(scratch, 'faces') };
  const fetched = await fetchTo(request);
  assert.equal(fetched.length, 60);
  assert.ok(fetched.every(({ written, path }) => written && path.startsWith(join(scratch, 'faces', 'ID'))));
  for (const name of names) assert.equal(await readFile(join(scratch, 'faces', name), 'utf8'), `picture ${name}`);
  await rm(join(scratch, 'faces', names[41]!));
  const again = await fetchTo(request);
  assert.deepEqual(
    again.filter(({ written }) => written).map(({ path }) => path),
    [join(scratch, 'faces', names[41]!)],
  );
});

test('a fetch tells when the store has answered, also when it then fails', async () => {
  let answers = 0;
  const onAnswer = () => void answers++;
  const to = join(scratch, 'nothing');
  await failure(fetchTo({ ...server.address('s3://models/nothing'), to }, undefined, { onAnswer }));
  assert(answers > 0);
  answers = 0;
  const endpoint = `http://127.0.0.1:${(await freePorts(1))[0]}`;
  await failure(fetchTo({ ...server.address('s3://models/nothing'), endpoint, to }, undefined, { onAnswer }));
  assert.equal(answers, 0);
});

test('a prefix of more objects than can be fetched in a sensible time is refused', async () => {
  const listing = createServer((_request, response) => {
    const contents = Array.from({ length: 1000 }, (_, i) => `<Contents><Key>ID/${i}.jpg</Key></Contents>`).join('');
    response.setHeader('content-type', 'application/xml');
    response.end(
      '<?xml version="1.0"?><ListBucketResult><IsTruncated>true</IsTruncated>' +
        `<NextContinuationToken>more</NextContinuationToken>${contents}</ListBucketResult>`,
    );
  }).listen(0, '127.0.0.1');
  await once(listing, 'listening');
  const endpoint = `http://127.0.0.1:${(listing.address() as AddressInfo).port}`;
  const address = { uri: 's3://models/millions/', endpoint, region: 'us-east-1', forcePathStyle: true };
  const error = await failure(fetchTo({ ...address, to: join(scratch, 'faces') }));
  listing.close();
  assert.match(error.message, /^s3:\/\/models\/millions: more than 100000 objects; at most 100000: pack/);
});

describe('an error is reported once, with the address', () => {
  const cases: Record<
    string,
    {
      address: () => Promise<StorageAddress> | StorageAddress;
      env?: Record<string, string>;
      expected: RegExp;
      passing?: true;
    }
  > = {
    'an endpoint that refuses': {
      address: async () => ({
        ...server.address('s3://models/x'),
        endpoint: `http://127.0.0.1:${(await freePorts(1))[0]}`,
      }),
      expected: /^s3:\/\/models\/x.* at http:\/\/(127\.0\.0\.1:\d+): \1 refuses connections \(ECONNREFUSED\); /,
      passing: true,
    },
    'a bucket that is missing': {
      address: () => server.address('s3://nowhere/x'),
      expected: /^s3:\/\/nowhere\/x.*: bucket "nowhere" does not exist; /,
    },
    'a wrong secret': {
      address: () => server.address('s3://models/x'),
      env: { AWS_SECRET_ACCESS_KEY: 'wrong' },
      expected: /: the credentials are wrong \(SignatureDoesNotMatch\); /,
    },
    'an unknown access key': {
      address: () => server.address('s3://models/x'),
      env: { AWS_ACCESS_KEY_ID: 'nobody' },
      expected: /: the credentials are wrong \((InvalidAccessKeyId|XAdminUserNotFound)\); /,
    },
    'no credentials': {
      address: () => server.address('s3://models/x'),
      env: { AWS_ACCESS_KEY_ID: '', AWS_SECRET_ACCESS_KEY: '' },
      expected: /: there are no credentials; AWS_ACCESS_KEY_ID/,
    },
  };
  for (const [name, { address, env = {}, expected, passing = false }] of Object.entries(cases)) {
    for (const [verb, call] of Object.entries({
      publishing: async () => publish(folder, NAMES, await address()),
      'checking beforehand': async () => checkDestination(await address()),
      fetching: async () => fetchTo({ ...(await address()), to: join(scratch, 'fetched') }),
    })) {
      test(`${name}, ${verb}`, async () => {
        Object.assign(process.env, env);
        const start = Date.now();
        const error = await failure(call());
        assert.equal(error.code, 'StorageFailed');
        assert.match(error.message, expected);
        assert.equal(error.exitCode, passing ? ExitCode.failure : ExitCode.refused);
        assert.ok(error.cause instanceof Error);
        assert.ok(Date.now() - start < 20_000, `it took ${Date.now() - start} ms`);
        for (const secret of Object.values(CREDENTIALS)) assert.ok(!error.message.includes(secret));
        assert.deepEqual(await readdir(scratch), ['artifact']);
      });
    }
  }

  test('a server that never answers', async () => {
    const silent = createServer(() => {}).listen(0, '127.0.0.1');
    await once(silent, 'listening');
    const address = {
      ...server.address('s3://models'),
      endpoint: `http://127.0.0.1:${(silent.address() as AddressInfo).port}`,
    };
    const client = s3Client(address, { silence: 50 });
    const error = await client
      .send(new HeadObjectCommand({ Bucket: 'models', Key: 'x' }))
      .catch((reason: unknown) => s3Error(reason, address, 'models', 'x'));
    silent.closeAllConnections();
    silent.close();
    assert.ok(error instanceof FacetrainError);
    assert.match(error.message, /: no answer in time \(/);
    assert.equal(error.exitCode, ExitCode.failure, 'it is transient');
  });

  test('a key that is neither an object nor a prefix', async () => {
    const error = await failure(
      fetchTo({ ...server.address('s3://models/no/such/thing'), to: join(scratch, 'fetched') }),
    );
    assert.match(error.message, /^s3:\/\/models\/no\/such\/thing at .*: neither an object nor a prefix of any; /);
  });

  test('a file that is missing', async () => {
    const error = await failure(publish(folder, ['absent.json'], server.address('s3://models/x')));
    assert.equal(error.subject, join(folder, 'absent.json'));
  });

  test('a key that leads out of the folder', async () => {
    const client = s3Client(server.address('s3://models'));
    const evil = createServer((_, response) => {
      response
        .writeHead(200, { 'content-type': 'application/xml' })
        .end('<ListBucketResult><Contents><Key>p/../../../evil</Key><Size>1</Size></Contents></ListBucketResult>');
    }).listen(0, '127.0.0.1');
    await once(evil, 'listening');
    const error = await failure(
      fetchTo({
        uri: 's3://models/p/',
        endpoint: `http://127.0.0.1:${(evil.address() as AddressInfo).port}`,
        region: 'x',
        forcePathStyle: true,
        to: join(scratch, 'in'),
      }),
    );
    evil.close();
    client.destroy();
    assert.match(error.message, /leads out of the folder/);
  });
});

test('a good destination passes the check, empty or not', async () => {
  await checkDestination(server.address('s3://models/never/written'));
  await checkDestination({ uri: 'file:///nowhere', endpoint: null, region: null, forcePathStyle: false });
});

test('publishing aborts uploads of its own objects that were cut off, no others, or says why it cannot', async () => {
  const client = s3Client(server.address(''));
  const begin = async (...keys: string[]) => {
    for (const Key of keys) await client.send(new CreateMultipartUploadCommand({ Bucket: 'models', Key }));
  };
  const left = async () => {
    const { Uploads = [] } = await client.send(
      new ListMultipartUploadsCommand({ Bucket: 'models', Prefix: 'cut-off/' }),
    );
    return Uploads.map(({ Key }) => Key);
  };
  const faulty = await startFaultyS3(server.endpoint);
  const address = { ...server.address('s3://models/cut-off'), endpoint: faulty.endpoint };
  const warnings: string[] = [];
  const warn = (message: string) => void warnings.push(message);
  try {
    await begin('cut-off/model.int7.onnx', 'cut-off/model.int7.onnx', 'cut-off/model.int7.onnx.other', 'cut-off/b');
    await publish(folder, NAMES, address, { warn });
    assert.deepEqual([warnings, await left()], [[], ['cut-off/b', 'cut-off/model.int7.onnx.other']]);

    await begin('cut-off/report.json');
    await writeFile(join(folder, NAMES[1]!), '{"report":1}');
    faulty.decide = ({ url }) => (/[?&]uploads/.test(url) ? 'denied' : 'pass');
    assert.equal((await publish(folder, NAMES, address, { warn })).filter(({ written }) => written).length, 2);
    assert.match(warnings[0]!, /needs s3:ListBucketMultipartUploads and s3:AbortMultipartUpload \(.*AccessDenied/);
    assert.equal((await left()).length, 3);
  } finally {
    faulty.close();
    client.destroy();
  }
});

test('an abort ends publishing before the manifest', async () => {
  const controller = new AbortController();
  controller.abort('SIGTERM');
  await assert.rejects(publish(folder, NAMES, server.address('s3://models/stopped'), controller));
  const listing = await failure(fetchTo({ ...server.address('s3://models/stopped'), to: join(scratch, 'fetched') }));
  assert.match(listing.message, /neither an object nor a prefix/);
});

describe('a full disk', () => {
  let disk: string;
  beforeEach(async () => {
    disk = join(scratch, 'disk');
    await mkdir(disk);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', disk]);
  });
  afterEach(() => execFileSync('umount', [disk]));

  test('publishing', async () => {
    const error = await failure(
      publish(folder, NAMES, { uri: `file://${disk}`, endpoint: null, region: null, forcePathStyle: false }),
    );
    assert.equal(error.code, 'DiskFull');
    assert.equal(error.subject, join(disk, 'model.int7.onnx'));
    assert.deepEqual(await readdir(disk), []);
  });

  for (const shared of [false, true]) {
    test(shared ? 'fetching to a shared path' : 'fetching', async () => {
      await publish(folder, NAMES, server.address('s3://models/full'));
      const error = await failure(fetchTo({ ...server.address('s3://models/full'), to: disk, shared }));
      assert.equal(error.code, 'DiskFull');
      assert.ok(error.subject.startsWith(disk), error.subject);
      // The smaller objects before it are complete, and the large one has left no file.
      for (const name of await readdir(disk))
        assert.ok(NAMES.includes(name) && (await stat(join(disk, name))).size < 100, name);
    });
  }
});
