/** The names by which Kubernetes knows this API, and the longest names of its objects. */

export const API_GROUP = 'facetrain.dev';
export const API_VERSION = `${API_GROUP}/v1alpha1` as const;

/** Name of the operator: as a job's `spec.managedBy`, and as the reporter of events. */
export const OPERATOR_NAME = `${API_GROUP}/operator` as const;

/** A DNS label by RFC 1035: it begins with a letter, as names of Services must. */
export const DNS_LABEL = /^[a-z]([-a-z0-9]*[a-z0-9])?$/;

/**
 * Longest name of a FaceTrainJob. Its pods are called `<name>-<attempt>-<rank>`, which must be a host name (63
 * characters): 40 leave room for 10 digits of attempt and 4 of rank. Its QuantizeJob is called `<name>-quantize`.
 */
export const MAX_FACETRAINJOB_NAME = 40;
/**
 * Longest name of a QuantizeJob: room for that of a FaceTrainJob with `-quantize`. The name of its pod,
 * `<name>-<attempt>-quantizer`, need not be a host name: no peer looks for it, and the kubelet cuts the host name.
 */
export const MAX_QUANTIZEJOB_NAME = 50;
