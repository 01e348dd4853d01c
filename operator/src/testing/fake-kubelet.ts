/** What a kubelet would write into the status of a pod, where a test has none. */
import { pods } from '../controllers/resources.ts';
import type { Client } from '../runtime/client.ts';

/** @param exitCode of its program, once that has ended */
export async function podBecomes(
  client: Client,
  namespace: string,
  name: string,
  phase: 'Running' | 'Succeeded' | 'Failed',
  exitCode?: number,
): Promise<void> {
  const terminated =
    exitCode === undefined
      ? undefined
      : { exitCode, reason: exitCode === 0 ? 'Completed' : 'Error', finishedAt: new Date().toISOString() };
  const ready = phase === 'Running';
  await client.patch(
    pods,
    namespace,
    name,
    {
      status: {
        phase,
        conditions: [
          { type: 'Ready', status: ready ? 'True' : 'False' },
          { type: 'PodScheduled', status: 'True' },
        ],
        containerStatuses: [
          {
            name: 'facetrain',
            ready,
            restartCount: 0,
            image: 'x',
            imageID: '',
            state: terminated ? { terminated } : { running: {} },
          },
        ],
      },
    },
    'status',
  );
}
