import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { type KubeConfigOptions, readKubeConfig } from './kubeconfig.ts';

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'facetrain-kubeconfig-'));
});
after(() => rm(folder, { recursive: true }));

async function write(name: string, content: string | object): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content));
  return path;
}

/** A kubeconfig with one context, `c`. */
const config = (user: object, cluster: object = {}, context: object = {}) => ({
  'current-context': 'c',
  contexts: [{ name: 'c', context: { cluster: 'k', user: 'u', ...context } }],
  clusters: [{ name: 'k', cluster: { server: 'https://k.example:6443', ...cluster } }],
  users: [{ name: 'u', user }],
});
const base64 = (text: string) => Buffer.from(text).toString('base64');
const read = async (content: string | object, options: KubeConfigOptions = {}) =>
  readKubeConfig({ file: await write('config', content), ...options });
const headersOf = async (user: object) => (await read(config(user))).connection.credentials!();

describe('a user authenticates by', () => {
  test('a token', async () => assert.deepEqual(await headersOf({ token: 't' }), { Authorization: 'Bearer t' }));
  test('name and password', async () =>
    assert.deepEqual(await headersOf({ username: 'u', password: 'p' }), { Authorization: `Basic ${base64('u:p')}` }));
  test('a certificate', async () => {
    await write('key.pem', 'key');
    const user = { 'client-certificate-data': base64('certificate'), 'client-key': 'key.pem' };
    const { tls, credentials } = (await read(config(user))).connection;
    assert.deepEqual([String(tls!.cert), String(tls!.key)], ['certificate', 'key']);
    assert.deepEqual(await credentials!(), {});
  });
  test('a program, which is asked again when its token ends', async () => {
    const program = await write(
      'login.mjs',
      `import { appendFileSync, readFileSync } from 'node:fs';
      appendFileSync(process.env.COUNT, 'x');
      const { apiVersion, kind } = JSON.parse(process.env.KUBERNETES_EXEC_INFO);
      const token = kind + readFileSync(process.env.COUNT, 'utf8').length;
      console.log(JSON.stringify({ apiVersion, status: { token, expirationTimestamp: new Date() } }));`,
    );
    const env = [{ name: 'COUNT', value: join(folder, 'count') }];
    const exec = { apiVersion: 'client.authentication.k8s.io/v1', command: process.execPath, args: [program], env };
    const { credentials } = (await read(config({ exec }))).connection;
    assert.deepEqual(await credentials!(), { Authorization: 'Bearer ExecCredential2' });
  });
});

test('the cluster: address, authority, name in the certificate; and the namespace of the context', async () => {
  const cluster = { 'certificate-authority-data': base64('ca'), 'tls-server-name': 'kubernetes' };
  const { namespace, name, connection } = await read(config({ token: 't' }, cluster, { namespace: 'faces' }));
  assert.deepEqual([name, namespace, connection.server], ['c', 'faces', 'https://k.example:6443']);
  assert.deepEqual([String(connection.tls!.ca), connection.tls!.servername], ['ca', 'kubernetes']);
});

test('the proxy of the cluster', async () => {
  const proxyOf = async (cluster: object) => (await read(config({ token: 't' }, cluster))).connection.proxy;
  assert.equal(await proxyOf({ 'proxy-url': 'socks5://proxy.example:1080' }), 'socks5://proxy.example:1080');
  assert.equal(await proxyOf({}), undefined);
});

test('YAML, a context by its name, and files of KUBECONFIG, of which the first counts', async () => {
  const first = await write(
    'first',
    'contexts:\n- {name: other, context: {cluster: k}}\nclusters:\n- {name: k, cluster: {server: "https://first"}}\n',
  );
  const second = await write('second', config({ token: 't' }));
  const environment = { KUBECONFIG: [first, join(folder, 'none'), second].join(delimiter) };
  const servers = [{ environment }, { environment, context: 'other' }].map(
    async (options) => (await readKubeConfig(options)).connection.server,
  );
  assert.deepEqual(await Promise.all(servers), ['https://first', 'https://first']);
  assert.deepEqual(await (await readKubeConfig({ environment })).connection.credentials!(), {
    Authorization: 'Bearer t',
  });
});

describe('refused in words', () => {
  const cases: Record<string, { content: string | object; options?: KubeConfigOptions; want: RegExp }> = {
    'no current context': { content: { contexts: [] }, want: /config: no current-context; choose one/ },
    'a context that does not exist': {
      content: config({}),
      options: { context: 'prod' },
      want: /config: no context prod; there are: c$/,
    },
    'a user that does not exist': { content: { ...config({}), users: [] }, want: /no user u; there are: none$/ },
    'a server that is no URL': {
      content: config({}, { server: 'k8s' }),
      want: /cluster k: server: k8s; must be a URL/,
    },
    'a proxy that is no URL': {
      content: config({}, { 'proxy-url': 'proxy:3128' }),
      want: /cluster k: proxy-url: proxy:3128; must be an http, https or socks5 URL$/,
    },
    'what is no YAML': { content: '{', want: /config: / },
    'a program that fails': {
      content: config({ exec: { command: 'no-such-login', installHint: 'install it' } }),
      want: /user u: .*no-such-login ENOENT; install it$/,
    },
  };
  for (const [name, { content, options, want }] of Object.entries(cases))
    test(name, () => assert.rejects(read(content, options), { name: 'KubeConfigError', message: want }));
  test('a file that does not exist', () =>
    assert.rejects(readKubeConfig({ file: join(folder, 'absent') }), /absent: no such file; name a kubeconfig by/));
});
