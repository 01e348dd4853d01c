/**
 * An Environment for tests: claims and host paths are mounted, data of object stores is fetched by an init container.
 */
import { parseStorageUri } from '@facetrain/api';
import type { Environment } from '../environment.ts';

export const testEnvironment: Environment = {
  defaultImage: 'registry.example/facetrain:1',
  storage(name, { uri }, access) {
    const location = parseStorageUri(uri);
    const path = `/mnt/${name}`;
    const mount = { name, mountPath: path, ...(access === 'read' && { readOnly: true }) };
    switch (location.scheme) {
      case 'file':
        return { path: location.path };
      case 'hostpath':
        return { path, volume: { name, hostPath: { path: location.path } }, mount };
      case 'pvc':
        return {
          path,
          volume: { name, persistentVolumeClaim: { claimName: location.claim } },
          mount: { ...mount, ...(location.path && { subPath: location.path }) },
        };
      case 's3': {
        const scratch = { path, volume: { name, emptyDir: {} }, mount: { name, mountPath: path } };
        return access === 'write'
          ? scratch
          : {
              ...scratch,
              fetch: { name: `fetch-${name}`, args: ['fetch', uri, path], env: [], volumeMounts: [scratch.mount] },
            };
      }
    }
  },
  credentials: (name, secretName) => ({
    path: `/mnt/${name}`,
    volume: { name, secret: { secretName } },
    mount: { name, mountPath: `/mnt/${name}`, readOnly: true },
  }),
  master: ({ name, namespace }, attempt, port) => ({ host: `${name}-${attempt}-0.${name}.${namespace}.svc`, port }),
  progress: (port) => ({ host: '::', port }),
  configDirectory: () => '/etc/facetrain',
  memoryDirectory: '/dev/shm/facetrain',
};
