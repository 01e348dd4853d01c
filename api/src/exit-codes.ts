/** Exit codes of every Facetrain program. The failure policy and `facetrain`'s help read this table. */
export const ExitCode = {
  success: 0,
  /** A defect or an unforeseen failure: the gang is started again from its newest checkpoint. */
  failure: 1,
  /** The input, the configuration or the environment was refused, and the message says which: starting again would not help. */
  refused: 2,
  /** The quantised model missed its accuracy gate; its report was still written. */
  gateFailed: 3,
  /** A peer was lost or a collective timed out: the gang is started again. */
  peerLost: 4,
  /** SIGINT. */
  interrupted: 130,
  /** SIGTERM came, a checkpoint was written: does not count as a failure. */
  preempted: 143,
} as const;
export type ExitCode = (typeof ExitCode)[keyof typeof ExitCode];
