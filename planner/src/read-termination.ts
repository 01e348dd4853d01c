/** Reads a pod's termination message, from a container's status or from the file of a local process. */
import { MAX_TERMINATION_BYTES, TerminationMessage, TerminationResult } from '@facetrain/api';
import type { ObservedPod } from './observed.ts';
import { observedProgress } from './observed-progress.ts';
import { rounded } from './plain-data.ts';

/**
 * Parses a termination message.
 * @returns an empty object if the text is not a message of ours: the end of a log, for example, a message that was cut,
 *   or one that is longer than the kubelet keeps
 */
export function readTermination(text: string): Pick<ObservedPod, 'termination' | 'result'> {
  if (text.length > MAX_TERMINATION_BYTES) return {};
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
  if (!progress && !artifact) return {};
  return {
    result: {
      ...(progress && { progress: observedProgress(progress) }),
      ...(artifact && { artifact: roundedArtifact(artifact) }),
    },
  };
}

type Artifact = NonNullable<TerminationResult['artifact']>;

function roundedArtifact(artifact: Artifact): Artifact {
  const { meanCosine, accuracyDrop } = artifact;
  return {
    ...artifact,
    ...(meanCosine !== undefined && { meanCosine: rounded(meanCosine, 5) }),
    ...(accuracyDrop !== undefined && { accuracyDrop: rounded(accuracyDrop, 3) }),
  };
}
