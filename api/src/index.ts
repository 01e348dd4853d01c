/**
 * The API of Facetrain: schemas of the jobs, of the files that its programs exchange, and of the errors that users see.
 *
 * Types, validation and the CustomResourceDefinitions all come from these schemas.
 */
export * from './artifact.ts';
export * from './checkpoint-manifest.ts';
export * from './counted.ts';
export * from './crd.ts';
export * from './errors.ts';
export * from './exit-codes.ts';
export * from './facetrainjob.ts';
export * from './file-cause.ts';
export * from './identifiers.ts';
export * from './input-range.ts';
export * from './job-fields.ts';
export * from './output-layout.ts';
export { isPlainObject } from './plain-object.ts';
export * from './pod-template.ts';
export * from './progress.ts';
export * from './quantity.ts';
export * from './quantize-config.ts';
export * from './quantizejob.ts';
export {
  BACKBONES,
  calibrationImages,
  computeThreads,
  inputMean,
  inputSide,
  inputStd,
  MAX_REPLICAS,
  MAX_SET_ASIDE,
  MAX_SET_ASIDE_REASON,
  maxBadPictures,
  type Precision,
  precision,
  type RowsOptimizer,
  type RowsPlacement,
  type RowUpdate,
  rowsOptimizer,
  searchRounds,
  seed,
  verificationPairs,
} from './ranges.ts';
export * from './row-state.ts';
export * from './sample-rates.ts';
export * from './schema-rules.ts';
export * from './shared-defaults.ts';
export * from './step-stages.ts';
export * from './storage.ts';
export * from './train-report.ts';
export * from './trainer-config.ts';
export * from './validate.ts';
export * from './without-defaults.ts';
