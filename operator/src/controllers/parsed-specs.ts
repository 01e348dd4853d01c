/** Parsed specs of jobs, one for each generation: a job is reconciled far more often than its spec changes. */
import { API_VERSION } from '@facetrain/api';
import type { JobKind } from '@facetrain/planner/names';
import type { JobObject } from './resources.ts';

export class ParsedSpecs<Spec> {
  readonly #kind: JobKind;
  readonly #parse: (document: object, name: string) => { spec: Spec };
  /** By the job's uid. */
  readonly #parsed = new Map<string, { generation: number | undefined; spec: Spec }>();

  /** @param parse throws when a document is not valid */
  constructor(kind: JobKind, parse: (document: object, name: string) => { spec: Spec }) {
    this.#kind = kind;
    this.#parse = parse;
  }

  /** @returns the same object as long as the job's generation is the same @throws what `parse` throws */
  get({ metadata: { name, uid, generation }, spec }: JobObject): Spec {
    const cached = this.#parsed.get(uid);
    if (cached && cached.generation === generation) return cached.spec;
    const parsed = this.#parse({ apiVersion: API_VERSION, kind: this.#kind, metadata: { name }, spec }, name);
    this.#parsed.set(uid, { generation, spec: parsed.spec });
    return parsed.spec;
  }

  forget(uid: string): void {
    this.#parsed.delete(uid);
  }
}
