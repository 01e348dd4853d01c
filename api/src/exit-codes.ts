/** Exit codes of all Facetrain programs. What the failure policy does about them: planner/src/endings.ts. */
export const ExitCode = {
  success: 0,
  /** A defect or an unforeseen failure. */
  failure: 1,
  /** The input, the configuration or the environment was refused; the message names which. A restart cannot help. */
  refused: 2,
  /** The quantized model missed a bound of its gate. Its report was written. */
  gateFailed: 3,
  /** Another rank was lost, or a collective timed out. */
  peerLost: 4,
  /** Another writer took over the folder that this program writes to; its message names that writer. */
  fencedOff: 5,
  /** SIGINT. */
  interrupted: 130,
  /** SIGTERM; a checkpoint was written. */
  preempted: 143,
} as const;
export type ExitCode = (typeof ExitCode)[keyof typeof ExitCode];
