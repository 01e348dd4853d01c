export * from './errors.ts';
export * from './exit-codes.ts';
export * from './trainer-config.ts';
