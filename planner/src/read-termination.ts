/** A pod's termination message as the planners want to see it, whoever read it: a kubelet or the executor of processes. */
import { TerminationMessage, TerminationResult } from '@facetrain/api';
import type { ObservedPod } from './observed.ts';
import { observedProgress } from './observed-progress.ts';
import { rounded } from './plain-data.ts';

/** Empty for what is not ours: the tail of a log, another program's message, one that was cut. */
export function readTermination(text: string): Pick<ObservedPod, 'termination' | 'result'> {
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch {
    return {};
  }
  const failure = TerminationMessage.safeParse(content);
  if (failure.success) return { termination: failure.data };
  const { data } = TerminationResult.safeParse(content);
  if (!data) return {};
  const { progress, artifact } = data;
  return {
    result: {
      ...(progress && { progress: observedProgress(progress) }),
      ...(artifact && { artifact: readable(artifact) }),
    },
  };
}

type Artifact = NonNullable<TerminationResult['artifact']>;

function readable(artifact: Artifact): Artifact {
  const { meanCosine, accuracyDrop } = artifact;
  return {
    ...artifact,
    ...(meanCosine !== undefined && { meanCosine: rounded(meanCosine, 5) }),
    ...(accuracyDrop !== undefined && { accuracyDrop: rounded(accuracyDrop, 3) }),
  };
}
