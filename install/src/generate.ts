/**
 * All files that are generated and checked in, as contents by path in the repository. `npm run generate` writes them.
 */
import { referenceFiles } from './api-reference.ts';
import { argoCdFiles } from './argo-cd-files.ts';
import { crdFiles, crdTemplates } from './crd-files.ts';
import { deployFiles } from './deploy-files.ts';
import { kustomizeFiles } from './kustomize-files.ts';
import { valuesFiles } from './values-files.ts';

/**
 * Returns the files in groups, each of which must be written before the next is made: deploy/ is rendered from the
 * chart on disk.
 *
 * @throws HelmError when the chart cannot be rendered
 */
export async function* generatedFiles(): AsyncGenerator<Record<string, string>> {
  yield {
    ...crdFiles(),
    ...crdTemplates(),
    ...valuesFiles(),
    ...argoCdFiles(),
    ...kustomizeFiles(),
    ...referenceFiles(),
  };
  yield await deployFiles();
}
