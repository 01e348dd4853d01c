/** Specs of jobs as their schema reads them: once for each generation, for a job is looked at far more often than it is changed. */
import { API_VERSION } from '@facetrain/api';
import type { JobKind } from '@facetrain/planner/names';
import type { JobObject } from './resources.ts';

export class ParsedSpecs<Spec> {
  readonly #kind: JobKind;
  readonly #parse: (document: object, name: string) => { spec: Spec };
  /** By the job's uid. */
  readonly #kept = new Map<string, { generation: number | undefined; spec: Spec }>();

  /** @param parse throws what is wrong with a document */
  constructor(kind: JobKind, parse: (document: object, name: string) => { spec: Spec }) {
    this.#kind = kind;
    this.#parse = parse;
  }

  /** @returns the same object as long as the job's generation is the same @throws what `parse` does */
  of({ metadata: { name, uid, generation }, spec }: JobObject): Spec {
    const kept = this.#kept.get(uid);
    if (kept && kept.generation === generation) return kept.spec;
    const parsed = this.#parse({ apiVersion: API_VERSION, kind: this.#kind, metadata: { name }, spec }, name);
    this.#kept.set(uid, { generation, spec: parsed.spec });
    return parsed.spec;
  }

  forget(uid: string): void {
    this.#kept.delete(uid);
  }
}
