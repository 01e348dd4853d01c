/** Evaluation on the verification sets. Each rank embeds a part of the pictures. */
import type { EvaluationReport, EvaluationResult, TrainerConfig } from '@facetrain/api';
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
  /** Every result of this attempt, in order. */
  readonly results: EvaluationReport[] = [];
  #sets: VerificationSet[];
  #channelOrder: 'rgb' | 'bgr';
  #ranks: Ranks;
  #program: Program;

  private constructor(sets: VerificationSet[], channelOrder: 'rgb' | 'bgr', ranks: Ranks, program: Program) {
    this.#sets = sets;
    this.#channelOrder = channelOrder;
    this.#ranks = ranks;
    this.#program = program;
  }

  /**
   * Reads the sets; pictures stay encoded.
   * @throws FacetrainError InvalidVerificationSet; InvalidConfig when they have no pairs for a bound of the gate
   */
  static async open(config: TrainerConfig, ranks: Ranks, program: Program): Promise<Evaluator> {
    const sets: VerificationSet[] = [];
    for (const set of config.evaluation.sets) {
      sets.push(await readSet(set));
      program.progress.tick();
    }
    if (config.evaluation.gate) checkGateHasPairs(config.evaluation.gate, sets);
    return new Evaluator(sets, config.model.channelOrder, ranks, program);
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
      this.results.push({ ...result, histograms: histogramsOf(embeddings, session.dim, set.same) });
      if (rank === 0) this.#program.log.info(result, 'evaluated');
      await afterSet();
    }
    return 'done';
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
