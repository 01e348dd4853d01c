/**
 * Where results lie in a job's output folder: the trainers write them there, the planner and the command line find
 * them.
 */

/** Paths below `spec.output.uri` of a FaceTrainJob, with slashes. */
export const OUTPUT = {
  /** The FP32 backbone. */
  model: 'model/backbone.onnx',
  trainReport: 'train-report.json',
  trainReportHtml: 'train-report.html',
  /** Folder of TensorBoard's event files. */
  tensorboard: 'tensorboard',
  /** Folder of checkpoints, if `spec.checkpoint.uri` names no other. */
  checkpoints: 'checkpoints',
  /** Folder of the INT7 artifact, if `spec.quantize.output` names no other. */
  int7: 'int7',
  /** Who may write to the folder; in this folder, in that of checkpoints and in that of an INT7 artifact. */
  fences: 'fences',
} as const;

/** Files of an INT7 artifact, in its folder. `manifest` is written last: an artifact without it is incomplete. */
export const ARTIFACT = {
  model: 'model.int7.onnx',
  /** The same network in the form that TensorRT reads. */
  tensorRtModel: 'model.int7.trt.onnx',
  scales: 'scales.json',
  report: 'report.json',
  reportHtml: 'report.html',
  manifest: 'manifest.json',
  /** Folder of the reports of a model that missed its gate. */
  rejected: 'rejected',
} as const;

/** In the folder of an INT7 artifact while it is made: what the search has decided. */
export const SEARCH_JOURNAL = 'search.journal';

/** The file that is written last into a checkpoint's folder; a folder without it is incomplete. */
export const CHECKPOINT_MANIFEST = 'manifest.json';

/** Beside the checkpoints: how they verify. */
export const CHECKPOINT_EVALUATIONS = 'evaluations.json';

/** Name of a checkpoint's folder: its step in ten digits, so that names sort as steps do. */
export const checkpointFolder = (step: number): string => `step-${String(step).padStart(10, '0')}`;

/** The step of a checkpoint's folder by its name; undefined: it is none. */
export function checkpointStep(folder: string): number | undefined {
  const step = /^step-(\d{10})$/.exec(folder)?.[1];
  return step === undefined ? undefined : Number(step);
}
