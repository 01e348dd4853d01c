/** The pictures that an attempt could not use: collected from all ranks, counted against the budget, and logged. */
import type { TrainerConfig, TrainReport } from '@facetrain/api';
import type { TrainingSessionContract, UnusablePicture } from '@facetrain/native';
import { checkBadPictures, type Preflight } from '../dataset/dataset-preflight.ts';
import { gatherJson } from '../program/gather-json.ts';
import type { Program } from '../program/program.ts';
import type { Ranks } from '../program/ranks.ts';

/** In a report, and between ranks in one exchange. */
const MOST_LISTED = 1000;

export class BadPictures {
  readonly #dataset: TrainerConfig['dataset'];
  readonly #images: number;
  readonly #rank: number;
  readonly #log: Program['log'];
  /** Of all ranks, by number. */
  readonly #known = new Map<number, UnusablePicture>();
  /** Of this rank, since the last exchange. */
  #fresh: UnusablePicture[] = [];

  constructor(
    dataset: TrainerConfig['dataset'],
    { images, badPictures }: Pick<Preflight, 'images' | 'badPictures'>,
    { rank }: Pick<Ranks, 'rank'>,
    { log }: Pick<Program, 'log'>,
  ) {
    this.#dataset = dataset;
    this.#images = images;
    this.#rank = rank;
    this.#log = log;
    this.add(badPictures);
  }

  /** Those that this rank found. */
  add(found: readonly UnusablePicture[]): void {
    for (const picture of found)
      if (!this.#known.has(picture.picture)) {
        this.#known.set(picture.picture, picture);
        this.#fresh.push(picture);
        this.#log.warn({ picture: picture.name, reason: picture.reason }, 'left out a bad picture');
      }
  }

  /**
   * A collective: every rank learns what the others have found.
   * @throws FacetrainError InvalidDataset on every rank, when all together are more than the budget
   */
  async exchange(session: Pick<TrainingSessionContract, 'allGather'>): Promise<void> {
    const fresh = this.#fresh.slice(0, MOST_LISTED);
    this.#fresh = this.#fresh.slice(MOST_LISTED);
    for (const found of await gatherJson(session, fresh))
      for (const picture of found) this.#known.set(picture.picture, picture);
    checkBadPictures(
      this.#dataset.path,
      { bad: this.#known.size, badPictures: this.#sorted, images: this.#images },
      this.#dataset.maxBadPictures,
    );
    if (this.#rank === 0 && this.#known.size > 0)
      this.#log.warn({ count: this.#known.size, images: this.#images }, 'bad pictures are left out');
  }

  /** For the report: those that this attempt met. */
  get report(): NonNullable<TrainReport['dataset']['badPictures']> {
    return {
      count: this.#known.size,
      listed: this.#sorted.slice(0, MOST_LISTED).map(({ name, reason }) => ({ name, reason })),
    };
  }

  get #sorted(): UnusablePicture[] {
    return [...this.#known.values()].sort((a, b) => a.picture - b.picture);
  }
}
