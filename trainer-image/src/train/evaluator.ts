/** Evaluation on the verification sets. Each rank embeds a part of the pictures. */
import {
  type CurveEvaluation,
  type EvaluationReport,
  type EvaluationResult,
  MOST_CURVE_POINTS,
  type TrainerConfig,
} from '@facetrain/api';
import type { Graph, TrainingSessionContract } from '@facetrain/native';
import type { Program } from '../program/program.ts';
import type { Ranks } from '../program/ranks.ts';
import { isStop } from '../program/stop-signal.ts';
import { histogram } from '../report/histogram.ts';
import { areAllSame, checkFiniteEmbeddings } from '../verification/check-embeddings.ts';
import { evaluateSet, partOf } from '../verification/evaluate-set.ts';
import { checkGateHasPairs } from '../verification/gate-pairs.ts';
import { spreadOf, verify, verifyGroups } from '../verification/protocol.ts';
import { readSet, type VerificationSet } from '../verification/verification-set.ts';

export class Evaluator {
  /**
   * By ascending step, over all attempts. Of many, the newest of each interval; those of earlier attempts with the
   * figures that curves show.
   */
  results: EvaluationReport[] = [];
  #sets: VerificationSet[];
  #channelOrder: 'rgb' | 'bgr';
  #totalSteps: number;
  #ranks: Ranks;
  #program: Program;

  private constructor(
    sets: VerificationSet[],
    channelOrder: 'rgb' | 'bgr',
    totalSteps: number,
    ranks: Ranks,
    program: Program,
  ) {
    this.#sets = sets;
    this.#totalSteps = totalSteps;
    this.#channelOrder = channelOrder;
    this.#ranks = ranks;
    this.#program = program;
  }

  /**
   * Reads the sets; pictures stay encoded.
   * @throws FacetrainError InvalidVerificationSet; InvalidConfig when they have no pairs for a bound of the gate
   */
  static async open(
    config: TrainerConfig,
    { totalSteps }: { totalSteps: number },
    ranks: Ranks,
    program: Program,
  ): Promise<Evaluator> {
    const sets: VerificationSet[] = [];
    for (const set of config.evaluation.sets) {
      sets.push(await readSet(set));
      program.progress.tick();
    }
    if (config.evaluation.gate) checkGateHasPairs(config.evaluation.gate, sets);
    return new Evaluator(sets, config.model.channelOrder, totalSteps, ranks, program);
  }

  /** Takes the results of earlier attempts, those on the job's sets. */
  resume(earlier: readonly CurveEvaluation[]): void {
    for (const result of earlier) if (this.#sets.some(({ name }) => name === result.set)) this.#add(result);
  }

  /** Whether there are results on all sets after `step` steps. */
  has(step: number): boolean {
    return this.#sets.every(({ name }) => this.results.some((result) => result.set === name && result.step === step));
  }

  /** What curves show of the results. */
  get curve(): CurveEvaluation[] {
    return this.results.map(({ set, step, accuracy, std, threshold, pairs, tarAtFar }) => ({
      ...{ set, step, accuracy, threshold, pairs, tarAtFar },
      ...(std !== undefined && { std }),
    }));
  }

  /** The newest result on each set. */
  get newest(): EvaluationResult[] {
    return this.#sets.flatMap(({ name }) => {
      const result = this.results.findLast(({ set }) => set === name);
      return result ? [{ set: name, step: result.step, accuracy: result.accuracy, std: result.std ?? 0 }] : [];
    });
  }

  /**
   * To be called on every rank after the same step. All ranks compute the figures from the same embeddings, so all get
   * the same figures.
   * @param afterSet is called after each set, on every rank between the same two collectives
   * @returns 'stopped' on every rank if one got a stop signal meanwhile; the remaining sets then have no result
   */
  async evaluate(
    session: TrainingSessionContract,
    input: Graph['input'],
    step: number,
    afterSet: () => Promise<void> = async () => {},
  ): Promise<'done' | 'stopped'> {
    const { rank, size } = this.#ranks;
    this.#program.progress.update({ stage: 'Evaluating' });
    for (const set of this.#sets) {
      const parts = await session.allGather(await this.#embedPart(session, set, input));
      const complete = parts.every(
        (part, owner) => part.length === partOf(set.encoded.length, { rank: owner, size }).count * session.dim,
      );
      if (!complete) return 'stopped';
      const embeddings = new Float32Array(2 * set.same.length * session.dim);
      let offset = 0;
      for (const part of parts) {
        embeddings.set(part, offset);
        offset += part.length;
      }
      checkFiniteEmbeddings(embeddings, session.dim, `set "${set.name}"`);
      // No reason to end a training, which may have just begun.
      if (rank === 0 && areAllSame(embeddings, session.dim))
        this.#program.log.warn({ step, set: set.name }, 'the embeddings of all pictures are the same');
      const verification = verify(embeddings, session.dim, set.same);
      const groups = set.groups && verifyGroups(embeddings, session.dim, set.same, set.groups, verification.threshold);
      const result = { set: set.name, step, ...verification, ...(groups && { groups }) };
      this.#add({ ...result, histograms: histogramsOf(embeddings, session.dim, set.same) });
      if (rank === 0) this.#program.log.info(result, 'evaluated');
      await afterSet();
    }
    return 'done';
  }

  /** In the place of those on its set in the same interval: of what curves can show, the newest. */
  #add(added: EvaluationReport): void {
    const interval = Math.ceil((this.#totalSteps * this.#sets.length) / MOST_CURVE_POINTS);
    const number = ({ step }: EvaluationReport) => Math.ceil(step / interval);
    this.results = [
      ...this.results.filter((result) => result.set !== added.set || number(result) !== number(added)),
      added,
    ];
  }

  /** This rank's embeddings. After a stop signal, an array of a wrong length, by which the other ranks detect it. */
  async #embedPart(
    session: TrainingSessionContract,
    set: VerificationSet,
    input: Graph['input'],
  ): Promise<Float32Array> {
    const { signal, progress } = this.#program;
    try {
      return await evaluateSet(session, set, {
        input,
        channelOrder: this.#channelOrder,
        flip: true,
        part: this.#ranks,
        signal,
        onBatch: () => progress.tick(),
      });
    } catch (error) {
      if (isStop(error, signal)) return new Float32Array(1);
      throw error;
    }
  }
}

function histogramsOf(...set: Parameters<typeof spreadOf>): NonNullable<EvaluationReport['histograms']> {
  const { norms, sameAngles, differentAngles } = spreadOf(...set);
  return { norm: histogram(norms), sameAngle: histogram(sameAngles), differentAngle: histogram(differentAngles) };
}
