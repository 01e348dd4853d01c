export * from './common.ts';
export * from './errors.ts';
export * from './exit-codes.ts';
export * from './facetrainjob.ts';
export * from './quantize-config.ts';
export * from './quantizejob.ts';
export * from './trainer-config.ts';
