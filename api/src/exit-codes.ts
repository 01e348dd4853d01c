/** Exit codes of all Facetrain programs, with what the failure policy does by default. */
export const ExitCode = {
  success: 0,
  /** A defect or an unforeseen failure. The gang restarts from its newest checkpoint. */
  failure: 1,
  /**
   * The input, the configuration or the environment was refused; the message names which. The job fails: a restart
   * cannot help.
   */
  refused: 2,
  /** The quantized model missed a bound of its gate. Its report was written, and the job fails. */
  gateFailed: 3,
  /** Another rank was lost, or a collective timed out. The gang restarts. */
  peerLost: 4,
  /** Another writer took over the folder that this program writes to; its message names that writer. */
  fencedOff: 5,
  /** SIGINT. */
  interrupted: 130,
  /** SIGTERM; a checkpoint was written. The restart is not counted. */
  preempted: 143,
} as const;
export type ExitCode = (typeof ExitCode)[keyof typeof ExitCode];
