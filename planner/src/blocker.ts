/** What prevents the creation of children: found in children.ts, pod.ts, refusal.ts and by each kind of job. */

/** Why missing children cannot be created. */
export interface Blocker {
  reason: string;
  message: string;
  /** It ends without any action of the user. */
  temporary?: true;
  /** Set if the API server refused an object. */
  refusal?: { quota?: string; reason?: string; message: string };
}
