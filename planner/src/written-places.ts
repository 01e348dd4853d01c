/**
 * The places that the pods of a job write to. Pods carry them as an annotation, because they may outlive their job, and
 * an executor lets no two jobs write to places of which one contains the other.
 *
 * Of an output folder, only what our programs write into it counts: a job may write to a folder below the output of
 * another.
 */
import { joinStorageUri, OUTPUT, placeOf, type StorageRef } from '@facetrain/api';

/** The fields of a spec that name the folders to which its job writes. */
export interface OutputFolders {
  output: { uri: string };
  checkpoint?: { uri?: string | undefined };
}

/** The folder of checkpoints: `spec.checkpoint.uri`, or a folder in the output. */
export const checkpointsUri = ({ output, checkpoint }: OutputFolders): string =>
  checkpoint?.uri ?? joinStorageUri(output.uri, OUTPUT.checkpoints);

/** Of the trainers of a FaceTrainJob. Its INT7 model is written by its QuantizeJob. */
export function trainerPlaces(spec: OutputFolders): string[] {
  const results = [OUTPUT.model, OUTPUT.trainReport, OUTPUT.trainReportHtml];
  return placesOf([
    ...results.map((name) => ({ uri: joinStorageUri(spec.output.uri, name) })),
    { uri: checkpointsUri(spec) },
  ]);
}

/** Of the quantizer of a QuantizeJob: the folder, or the prefix in an object store, of the artifact. */
export const quantizerPlaces = ({ output }: { output: StorageRef }): string[] => placesOf([output]);

const placesOf = (references: StorageRef[]): string[] => references.flatMap((reference) => placeOf(reference) ?? []);
