/**
 * The values of the chart, as a zod schema. values.yaml, values.schema.json (by which Helm validates a user's values)
 * and the table in the chart's README are generated from it. Every field has a description and a default.
 */
import { z } from 'zod';

const text = (value: string, description: string) => z.string().default(value).describe(description);
const flag = (value: boolean, description: string) => z.boolean().default(value).describe(description);
const section = <T extends z.ZodRawShape>(shape: T, description: string) =>
  z
    .strictObject(shape)
    .prefault({} as never)
    .describe(description);

/** A field of a Kubernetes object, which the API server validates. */
const object = (value: Record<string, unknown>, description: string) =>
  z.record(z.string(), z.unknown()).default(value).describe(description);
const list = (description: string) => z.array(z.record(z.string(), z.unknown())).default([]).describe(description);
const labels = (description: string, value: Record<string, string> = {}) =>
  z.record(z.string(), z.string()).default(value).describe(description);

const DURATION = /^([0-9]+(ms|[smhdwy]))+$/;
const NAMESPACE = /^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?$/;
const NAME = /^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$/;
const REGISTRY = /^((\[[0-9a-fA-F:]+\]|[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?)(:[0-9]+)?(\/[a-z0-9._-]+)*)?$/;
/** Without a tag. It may begin with the registry. */
const REPOSITORY = /^([A-Za-z0-9][-A-Za-z0-9.]*(:[0-9]+)?\/)?[a-z0-9]+([._/-]+[a-z0-9]+)*$/;
const DIGEST = /^(sha256:[0-9a-f]{64})?$/;

const imageShape = (repository: string) => ({
  registry: z
    .string()
    .regex(REGISTRY)
    .default('')
    .describe('Host (and port) of the registry; empty: the one that the nodes take for images without.'),
  repository: z.string().regex(REPOSITORY).default(repository).describe('Name of the image in the registry.'),
  tag: text('', "Tag; empty: the chart's appVersion."),
  digest: z
    .string()
    .regex(DIGEST)
    .default('')
    .describe('`sha256:…`; an image with a digest is pulled by it, whatever its tag.'),
});

export const Values = z.strictObject({
  image: section(
    {
      ...imageShape('facetrain/operator'),
      pullPolicy: z
        .enum(['Always', 'IfNotPresent', 'Never'])
        .default('IfNotPresent')
        .describe('When the nodes pull it.'),
    },
    "The operator's image.",
  ),
  trainerImage: section(
    imageShape('facetrain/trainer'),
    'Image of training and quantizing pods whose job names none. Its pull secrets belong to the podTemplate of a ' +
      'job, or to the service account of its namespace.',
  ),
  imagePullSecrets: z
    .array(z.strictObject({ name: z.string().min(1) }))
    .default([])
    .describe("Secrets in the release's namespace that the operator's image is pulled with: `[{name: …}]`."),

  crds: section(
    {
      enabled: flag(true, 'Install the CustomResourceDefinitions, and upgrade them with the chart.'),
      keep: flag(true, 'Leave them, and so all jobs, in the cluster at `helm uninstall`.'),
    },
    'FaceTrainJob and QuantizeJob.',
  ),
  watchNamespace: z
    .string()
    .regex(NAMESPACE)
    .default('')
    .describe(
      'Watch this namespace only, with a Role in place of a ClusterRole; empty: all namespaces. ' +
        'A Role cannot permit reading nodes, so jobs wait for pods on a node that is lost. ' +
        "The lease is in the release's namespace under a fixed name, so install each such release in a separate " +
        'namespace, best in the one that it watches.',
    ),

  replicas: z
    .int()
    .min(0)
    .max(16)
    .default(2)
    .describe(
      'Replicas of the operator. One is the leader; another takes over some seconds after the end of its lease when ' +
        'the node of the leader is lost. A single one is replaced only after 5 minutes.',
    ),
  leaseSeconds: z
    .int()
    .min(3)
    .max(3600)
    .default(8)
    .describe(
      'Seconds of silence after which another replica takes the lease of the leader. A leader that cannot renew it ' +
        'for three quarters of this ends: give more where the API server is often away for so long.',
    ),
  workers: z.int().min(1).max(256).default(8).describe('Jobs of a kind that are reconciled in parallel.'),
  progressSeconds: z
    .int()
    .min(1)
    .max(3600)
    .default(5)
    .describe('Seconds between two requests to a training for its progress.'),
  logLevel: z.enum(['debug', 'info', 'warn', 'error']).default('info').describe('Lowest level that is logged.'),
  extraEnv: list('More environment of the operator: `[{name: …, value: …}]`, of other names than the chart sets.'),

  resources: object(
    { requests: { cpu: '100m', memory: '128Mi' }, limits: { memory: '512Mi' } },
    "Requests and limits of the operator's container. Its memory grows with the pods of all jobs.",
  ),
  podSecurityContext: object(
    { runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, seccompProfile: { type: 'RuntimeDefault' } },
    "Security context of the operator's pods.",
  ),
  securityContext: object(
    { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: ['ALL'] } },
    "Security context of the operator's container.",
  ),
  podLabels: labels("More labels of the operator's pods."),
  podAnnotations: labels("Annotations of the operator's pods."),
  nodeSelector: labels("Labels of the nodes that the operator's pods may run on."),
  tolerations: list("Taints that the operator's pods tolerate."),
  affinity: object({}, "Affinity of the operator's pods."),
  topologySpreadConstraints: list("How the operator's pods are spread; empty: over nodes, where there are several."),
  priorityClassName: text(
    '',
    "Priority class of the operator's pods; `system-cluster-critical` keeps it running where nodes are full.",
  ),

  serviceAccount: section(
    {
      create: flag(true, 'Make a service account.'),
      name: text('', 'Its name; empty: that of the release, or `default` where none is made.'),
      annotations: labels('Its annotations.'),
    },
    'The account with which the operator uses the API server. Training pods have none.',
  ),
  rbac: section(
    {
      create: flag(true, 'Make the roles that the operator needs, and bind them.'),
      userRoles: flag(
        true,
        'Let those who may `edit` a namespace make jobs in it, and those who may `view` it look at them ' +
          '(aggregated ClusterRoles).',
      ),
    },
    'Who may do what.',
  ),
  podDisruptionBudget: section(
    { enabled: flag(true, 'Make one if there are at least two replicas: a drain may stop one at a time.') },
    'For drains of nodes.',
  ),
  networkPolicy: section(
    {
      enabled: flag(false, 'Make one: only the probes and the metrics can be reached.'),
      from: list('Who may reach them: peers of a NetworkPolicy; empty: anyone.'),
    },
    "A NetworkPolicy for the operator's pods.",
  ),
  metrics: section(
    {
      enabled: flag(true, 'Make a Service for the metrics, which the operator serves under `/metrics`.'),
      serviceMonitor: section(
        {
          enabled: flag(false, 'Let the Prometheus operator scrape that Service.'),
          interval: z.string().regex(DURATION).default('30s').describe('How often.'),
          labels: labels('Labels by which your Prometheus selects it.'),
        },
        'Metrics of the operator.',
      ),
      podMonitor: section(
        {
          enabled: flag(
            false,
            'Let the Prometheus operator scrape rank 0 of every training, and every quantization, in the watched ' +
              'namespaces: step, loss, images per second.',
          ),
          interval: z.string().regex(DURATION).default('15s').describe('How often.'),
          labels: labels('Labels by which your Prometheus selects it.'),
        },
        'Metrics of the jobs. (If one of your policies closes the progress port, open it for your Prometheus.)',
      ),
      prometheusRule: section(
        {
          enabled: flag(false, 'Let the Prometheus operator load the alerts of `files/alerts.yaml`.'),
          labels: labels('Labels by which your Prometheus selects them.'),
        },
        'Alerts about the operator, which need the serviceMonitor, about the progress of jobs, which need the ' +
          'podMonitor, and about their phases, which need kubeStateMetrics. ' +
          'If your Prometheus scrapes them otherwise, load `files/alerts.yaml` yourself.',
      ),
      dashboard: section(
        {
          enabled: flag(false, 'Make a ConfigMap with the dashboard of `files/dashboard.json`.'),
          labels: labels('Labels by which the sidecar of Grafana finds it.', { grafana_dashboard: '1' }),
          annotations: labels('Its annotations, such as that of its folder.'),
        },
        'A dashboard for Grafana.',
      ),
      kubeStateMetrics: section(
        {
          enabled: flag(false, 'Make a ConfigMap (key config.yaml) with `files/kube-state-metrics.yaml`.'),
          labels: labels('Its labels.'),
        },
        'By this configuration kube-state-metrics serves the status of every job. Mount it there, name its file by ' +
          '--custom-resource-state-config-file, and let it list and watch facetrainjobs and quantizejobs.',
      ),
    },
    "For Prometheus. The monitors need its operator's CustomResourceDefinitions.",
  ),
  nameOverride: z.string().regex(NAME).default('').describe("In place of the chart's name, in names and labels."),
  fullnameOverride: z
    .string()
    .regex(NAME)
    .default('')
    .describe("In place of the release's and the chart's name, in names."),
});
export type Values = z.infer<typeof Values>;

/** What Helm passes to the chart as a subchart: its values, and these two. */
export const SubchartValues = Values.extend({
  global: object({}, 'Values of the parent chart; nothing here reads them.'),
  enabled: flag(true, 'For the `condition` of a parent chart; nothing here reads it.'),
});
