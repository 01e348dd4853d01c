import { buildBackbone } from './backbones/backbone.ts';
import { TrainingSession, readPictures } from '@facetrain/native';
const lr = Number(process.argv[2]), steps = Number(process.argv[3]), width = Number(process.argv[4] ?? 1);
const graph = buildBackbone({ backbone: 'mobilefacenet', embeddingDim: 512, width, blocks: width === 1 ? [1,1,1,1] : null, seed: 7 });
const s = await TrainingSession.open({ graph, seed: 7, numClasses: 40, margin: { m1: 1, m2: 0, m3: 0.4 }, scale: 64, sampleRate: 1, interclassFilter: null, momentum: 0.9, weightDecay: 5e-4, gradientClipNorm: 5,
  data: { directory: '/work/wt-trainer/examples/lfw-small/data', globalBatchSize: 32, flip: true, shift: 0, channelOrder: 'rgb', loaderThreads: 1 }, comm: { rank: 0, size: 1, masterAddr: '127.0.0.1', masterPort: 0, rendezvousTimeoutMs: 1000, collectiveTimeoutMs: 1000 }, computeThreads: 1, device: 'cpu' });
const pics = await readPictures('/work/wt-trainer/examples/lfw-small/data', [0, 1, 100, 300], { channelOrder: 'rgb' });
async function show(k: number) { const e = await s.embed(pics); const d = s.dim; const norm = (i: number) => Math.hypot(...e.subarray(i * d, i * d + d));
 const c = (i: number, j: number) => { let t = 0; for (let q = 0; q < d; q++) t += e[i * d + q]! * e[j * d + q]!; return (t / norm(i) / norm(j)).toFixed(4); };
 console.log(k, 'cos', c(0,1), c(0,2), c(2,3), 'norm', norm(0).toFixed(2)); }
for (let k = 0; k < steps; k++) { const r = await s.step(k, lr, {}); if (k % 5 === 4) { console.log(k, r.loss.toFixed(3), r.gradientNorm.toFixed(3)); await show(k); } }
await s.close();
