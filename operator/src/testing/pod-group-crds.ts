/**
 * The PodGroups of KAI Scheduler and Volcano, without the schedulers: definitions of the same group, version and kind,
 * with the documented fields that the operator writes. What it writes besides, an API server drops.
 *
 * Sources: pkg/apis/scheduling/v2alpha2/podgroup_types.go of kai-scheduler/KAI-Scheduler, and
 * staging/src/volcano.sh/apis/pkg/apis/scheduling/v1beta1/types.go of volcano-sh/volcano.
 */
import assert from 'node:assert/strict';
import { podGroups } from '../controllers/resources.ts';
import { defineResource } from '../runtime/resource.ts';
import type { ControlPlane } from './control-plane.ts';
import { eventually } from './eventually.ts';

export const KAI_GROUPS = podGroups('scheduling.run.ai/v2alpha2');
export const VOLCANO_GROUPS = podGroups('scheduling.volcano.sh/v1beta1');

const definitions = defineResource('apiextensions.k8s.io/v1', 'customresourcedefinitions');
const nameOf = ({ apiVersion }: typeof KAI_GROUPS) => `podgroups.${apiVersion.split('/')[0]}`;

/** Defines the PodGroups of one of the schedulers, and waits until they are served. */
export async function installPodGroups({ client }: ControlPlane, resource: typeof KAI_GROUPS): Promise<void> {
  const [group, version] = resource.apiVersion.split('/');
  const isKai = resource === KAI_GROUPS;
  await client.post('/apis/apiextensions.k8s.io/v1/customresourcedefinitions', {
    apiVersion: 'apiextensions.k8s.io/v1',
    kind: 'CustomResourceDefinition',
    metadata: { name: nameOf(resource) },
    spec: {
      group,
      scope: 'Namespaced',
      names: { kind: 'PodGroup', listKind: 'PodGroupList', plural: 'podgroups', singular: 'podgroup' },
      versions: [
        {
          name: version,
          served: true,
          storage: true,
          schema: {
            openAPIV3Schema: {
              type: 'object',
              properties: {
                spec: {
                  type: 'object',
                  properties: {
                    minMember: { type: 'integer', format: 'int32', minimum: 0 },
                    queue: { type: 'string', ...(!isKai && { default: 'default', maxLength: 253 }) },
                    priorityClassName: { type: 'string' },
                  },
                },
                status: { type: 'object', 'x-kubernetes-preserve-unknown-fields': true },
              },
            },
          },
          ...(isKai && { subresources: { status: {} } }),
        },
      ],
    },
  });
  await eventually(() => client.list(resource, null, {}));
}

/** Removes the definition, and with it all its objects, as when the scheduler is uninstalled. */
export async function removePodGroups({ client }: ControlPlane, resource: typeof KAI_GROUPS): Promise<void> {
  const { metadata } = await client.get(definitions, null, nameOf(resource));
  await client.delete(definitions, null, metadata.name, metadata.uid);
  await eventually(() => assert.rejects(client.list(resource, null, {})));
}
