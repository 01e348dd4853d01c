/** The namespace that the manifest in deploy/ and the Pulumi component install into. */
export const NAMESPACE = 'facetrain-system';

/** `restricted` is the strictest Pod Security Standard; the operator's pods meet it. */
export const NAMESPACE_LABELS = {
  'app.kubernetes.io/name': 'facetrain',
  'pod-security.kubernetes.io/enforce': 'restricted',
};
