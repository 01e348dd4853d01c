/**
 * The one error that people see. Anything else that is thrown is a defect and keeps its stack.
 *
 * The message reads "<subject>: <what was found>; <what is allowed or what to do>".
 */
import { ExitCode } from './exit-codes.ts';

/** Stable names, written to the pod's termination message, so that policies need not parse text. */
export const ERROR_CODES = [
  'InvalidManifest',
  'InvalidConfig',
  'InvalidDataset',
  'InvalidVerificationSet',
  'InvalidModel',
  'UnsupportedOperator',
  'InvalidCheckpoint',
  'InvalidArtifact',
  'InvalidArgument',
  'StorageFailed',
  'DiskFull',
  'RendezvousTimeout',
  'PeerLost',
  'NotANumber',
  'GateFailed',
] as const;
export type ErrorCode = (typeof ERROR_CODES)[number];

export interface FacetrainErrorOptions {
  code: ErrorCode;
  /** The file, the field's path, or the address. */
  subject: string;
  /** What was there. */
  found: string;
  /** What is allowed, or what to do about it. */
  allowed: string;
  exitCode?: ExitCode;
  cause?: unknown;
}

export class FacetrainError extends Error {
  override readonly name = 'FacetrainError';
  readonly code: ErrorCode;
  readonly subject: string;
  readonly found: string;
  readonly allowed: string;
  readonly exitCode: ExitCode;

  constructor(options: FacetrainErrorOptions) {
    super(
      `${options.subject}: ${options.found}; ${options.allowed}`,
      options.cause === undefined ? undefined : { cause: options.cause },
    );
    this.code = options.code;
    this.subject = options.subject;
    this.found = options.found;
    this.allowed = options.allowed;
    this.exitCode =
      options.exitCode ??
      (options.code === 'PeerLost'
        ? ExitCode.peerLost
        : options.code === 'GateFailed'
          ? ExitCode.gateFailed
          : ExitCode.refused);
  }
}
