/**
 * Defaults that are used outside the schemas, too: the planner resolves them into `config.json`, the command line
 * offers them as options. All other defaults are in the schemas (facetrainjob.ts, quantizejob.ts, job-fields.ts).
 */

/** Length of the embedding of a backbone that we build; that of insightface's published models. */
export const DEFAULT_EMBEDDING_DIM = 512;

/** Multiplier of mobilefacenet's channels; that of insightface's reference (`mbf_large` has 4, `mbf` 2). */
export const DEFAULT_MOBILEFACENET_WIDTH = 2;

/**
 * Margins by type, of the logit cos(m1·θ + m2) − m3. A type ignores the parameters of other types; here they have
 * the values that change nothing. CosFace (arXiv 1801.09414) and ArcFace (arXiv 1801.07698) have the values that
 * insightface trains with, SphereFace that of OpenSphere, by the authors of arXiv 2109.05565, and AdaFace (arXiv
 * 2204.00964) those of its paper. Combined has no margin by default, so a manifest must set one.
 */
export const DEFAULT_MARGINS = {
  CosFace: { m1: 1, m2: 0, m3: 0.4, m: 0, h: 0 },
  ArcFace: { m1: 1, m2: 0.5, m3: 0, m: 0, h: 0 },
  Combined: { m1: 1, m2: 0, m3: 0, m: 0, h: 0 },
  SphereFace: { m1: 1.5, m2: 0, m3: 0, m: 0, h: 0 },
  AdaFace: { m1: 1, m2: 0, m3: 0, m: 0.4, h: 0.333 },
} as const;

/**
 * TCP port of /v1/progress, /metrics and /healthz. The quantizer always uses it: no field of its spec sets the port.
 */
export const DEFAULT_PROGRESS_PORT = 8080;

/** TCP port at which rank 0 waits for the other ranks; torchrun's default. */
export const DEFAULT_RENDEZVOUS_PORT = 29_500;

/** Order of the color channels at a model's input; insightface feeds RGB. */
export const DEFAULT_CHANNEL_ORDER = 'RGB';

/**
 * Share of a dataset's pictures that may be unusable, rounded up to whole pictures: one in a thousand, and one at
 * least. Published datasets have fewer; a share above it means that the files were damaged on their way.
 */
export const DEFAULT_MAX_BAD_PICTURES = 0.001;

/** Number of pictures that the scale search looks at, and the seed that draws them. */
export const DEFAULT_CALIBRATION = { images: 50, seed: 0 } as const;

/**
 * The scale search of EasyQuant (arXiv 2006.16669). Its S is 1/scale: 100 candidates between 0.5 and 2 times the first
 * value of 1/scale, so `upper` gives the smallest scale.
 */
export const DEFAULT_SEARCH = {
  rounds: 2,
  candidates: 100,
  lower: 0.5,
  upper: 2,
  zeroPoints: true,
  equalize: true,
  biasCorrection: true,
  budget: 0,
  strict: false,
} as const;

/** The search of the paper alone: scales of tensors as they are, and nothing else. */
export const PAPER_SEARCH = { zeroPoints: false, equalize: false, biasCorrection: false, budget: 0 } as const;

/**
 * Seconds between SIGTERM and SIGKILL, if the pod template names no others. It is long enough to write a checkpoint of
 * a large head. Kubernetes' own default is 30.
 */
export const DEFAULT_TERMINATION_GRACE_SECONDS = 120;

/**
 * Seconds for which a node may not be ready before its pods count as lost. Kubernetes evicts after 300, and all ranks
 * would wait that long for one; a kubelet that restarts, or a network that fails for a moment, takes less than 60.
 */
export const DEFAULT_NODE_LOST_SECONDS = 60;
