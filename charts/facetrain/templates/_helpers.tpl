{{/* Names and labels that several templates use. */}}

{{- define "facetrain.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name of every object. It leaves room for a suffix within 63 characters. */}}
{{- define "facetrain.fullname" -}}
{{- $name := include "facetrain.name" . }}
{{- $ofRelease := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- .Values.fullnameOverride | default $ofRelease | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "facetrain.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "facetrain.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* They must never change: the selector of a Deployment is immutable. */}}
{{- define "facetrain.selectorLabels" -}}
app.kubernetes.io/name: {{ include "facetrain.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "facetrain.labels" -}}
{{ include "facetrain.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end }}

{{/* Reference of an image. Argument: a list of the image's values and the tag for values without one. */}}
{{- define "facetrain.image" -}}
{{- $image := index . 0 }}
{{- $tag := $image.tag | default (ternary "" (index . 1) (ne $image.digest "")) }}
{{- with $image.registry }}{{ . }}/{{ end }}{{ $image.repository }}{{ with $tag }}:{{ . }}{{ end }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* Refuses a variable that the chart sets: of two with one name the API server ignores one. Argument: its name. */}}
{{- define "facetrain.refuseEnv" -}}
{{- $values := dict
      "FACETRAIN_IMAGE" "trainerImage"
      "FACETRAIN_NAMESPACE" "watchNamespace"
      "FACETRAIN_LEASE_SECONDS" "leaseSeconds"
      "FACETRAIN_WORKERS" "workers"
      "FACETRAIN_PROGRESS_SECONDS" "progressSeconds"
      "FACETRAIN_LOG_LEVEL" "logLevel" }}
{{- with get $values . }}{{ fail (printf "extraEnv: %s is what the value %s sets" $ .) }}{{ end }}
{{- if eq . "FACETRAIN_HEALTH_PORT" }}
{{- fail "extraEnv: FACETRAIN_HEALTH_PORT is that of the probes and the metrics, 8081" }}
{{- end }}
{{- end }}
