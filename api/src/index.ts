export * from './errors.ts';
export * from './exit-codes.ts';
export * from './quantize-config.ts';
export * from './trainer-config.ts';
