{{/* Names and labels that more than one template needs. */}}

{{- define "facetrain.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Of everything that is made. Short enough for a suffix. */}}
{{- define "facetrain.fullname" -}}
{{- $name := include "facetrain.name" . }}
{{- $ofRelease := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- .Values.fullnameOverride | default $ofRelease | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "facetrain.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "facetrain.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* Never change: a Deployment's selector cannot. */}}
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

{{/* Of a list: the values of an image, and the tag where they name none. */}}
{{- define "facetrain.image" -}}
{{- $image := index . 0 }}
{{- $tag := $image.tag | default (ternary "" (index . 1) (ne $image.digest "")) }}
{{- with $image.registry }}{{ . }}/{{ end }}{{ $image.repository }}{{ with $tag }}:{{ . }}{{ end }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end }}
