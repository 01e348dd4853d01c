export { addonDigest, exitNow } from './addon.ts';
export * from './data.ts';
export * from './dataset-files.ts';
export * from './embedder.ts';
export * from './model.ts';
export * from './quantization.ts';
export * from './training.ts';
export * from './types.ts';
