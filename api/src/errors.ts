/**
 * The error for everything that a user can correct. Any other error is a defect of ours; it is logged with its stack.
 *
 * The message reads "<subject>: <what was found>; <what is allowed or what to do>".
 */
import { ExitCode } from './exit-codes.ts';

/** Stable names for failure policies to match (`reasons`). They are part of the pod's termination message. */
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
  'InsufficientMemory',
  'RendezvousTimeout',
  'PeerLost',
  'FencedOff',
  'NotANumber',
  'GateFailed',
] as const;
export type ErrorCode = (typeof ERROR_CODES)[number];

export interface FacetrainErrorOptions {
  code: ErrorCode;
  /** The file, the path of the field, or the address. */
  subject: string;
  /** The offending value, or what is wrong with it. */
  found: string;
  /** What is allowed, or what to do about it. */
  allowed: string;
  exitCode?: ExitCode;
  cause?: unknown;
}

/** Exit codes of errors, where it is not 2 (refused). */
const EXIT_CODE_OF: Partial<Record<ErrorCode, ExitCode>> = {
  GateFailed: ExitCode.gateFailed,
  PeerLost: ExitCode.peerLost,
  FencedOff: ExitCode.fencedOff,
};

/** Exit code, unless given: that of EXIT_CODE_OF, else 2. */
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
    this.exitCode = options.exitCode ?? EXIT_CODE_OF[options.code] ?? ExitCode.refused;
  }
}
