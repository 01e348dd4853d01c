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
  /** Folder of checkpoints, if `spec.checkpoint.uri` names no other. */
  checkpoints: 'checkpoints',
  /** Folder of the INT7 artifact, if `spec.quantize.output` names no other. */
  int7: 'int7',
} as const;

/** Name of a checkpoint's folder: its step in ten digits, so that names sort as steps do. */
export const checkpointFolder = (step: number): string => `step-${String(step).padStart(10, '0')}`;
