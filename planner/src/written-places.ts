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
  output: StorageRef;
  checkpoint?: { uri?: string | undefined; s3?: StorageRef['s3'] };
}

/** Something below another place, in the same store. */
export const below = ({ uri, s3 }: StorageRef, name: string): StorageRef => ({
  uri: joinStorageUri(uri, name),
  ...(s3 && { s3 }),
});

/** The place of checkpoints: `spec.checkpoint.uri`, or a folder in the output. */
export const checkpointsPlace = ({ output, checkpoint }: OutputFolders): StorageRef =>
  checkpoint?.uri === undefined
    ? below(output, OUTPUT.checkpoints)
    : { uri: checkpoint.uri, ...(checkpoint.s3 && { s3: checkpoint.s3 }) };

export const checkpointsUri = (folders: OutputFolders): string => checkpointsPlace(folders).uri;

/** Of the trainers of a FaceTrainJob. Its INT7 model is written by its QuantizeJob. */
export function trainerPlaces(spec: OutputFolders): string[] {
  const results = [OUTPUT.model, OUTPUT.trainReport, OUTPUT.trainReportHtml];
  return placesOf([...results.map((name) => below(spec.output, name)), checkpointsPlace(spec)]);
}

/** Of the quantizer of a QuantizeJob: the folder, or the prefix in an object store, of the artifact. */
export const quantizerPlaces = ({ output }: { output: StorageRef }): string[] => placesOf([output]);

const placesOf = (references: StorageRef[]): string[] => references.flatMap((reference) => placeOf(reference) ?? []);
