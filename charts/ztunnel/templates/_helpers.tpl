{{/* The name of all objects and of the service account. */}}
{{- define "ztunnel.name" -}}
{{ .Values.resourceName | default "ztunnel" }}
{{- end }}

{{/* Istio's labels, of all objects and of the pods. */}}
{{- define "ztunnel.standard-labels" -}}
app.kubernetes.io/name: ztunnel
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: istio
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
istio.io/rev: {{ .Values.revision | default "default" | quote }}
{{- end }}

{{/* The labels of an object; those of the user replace ours. Further ones of ours: `index . 1`. */}}
{{- define "ztunnel.labels" -}}
{{- $root := index . 0 }}
{{- $labels := include "ztunnel.standard-labels" $root | fromYaml }}
{{- include "ztunnel.strings" (mustMergeOverwrite $labels (index . 1) ($root.Values.labels | default dict)) }}
{{- end }}

{{/* The labels that objects have besides for istioctl and operators, who look for their own by them. */}}
{{- define "ztunnel.owner-labels" -}}
app: ztunnel
install.operator.istio.io/owning-resource: {{ .Values.ownerName | default "unknown" | quote }}
operator.istio.io/component: Ztunnel
{{- end }}

{{/* A map of which every value is to be a string; those that are null are left out. */}}
{{- define "ztunnel.strings" -}}
{{- $strings := dict }}
{{- range $key, $value := . }}
{{- if not (kindIs "invalid" $value) }}
{{- $_ := set $strings $key (include "ztunnel.string" $value) }}
{{- end }}
{{- end }}
{{- toYaml $strings }}
{{- end }}

{{/* A value as text. A file's numbers come as floats, which would print 4194304 as 4.194304e+06. */}}
{{- define "ztunnel.string" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}
{{- int64 . }}
{{- else }}
{{- . }}
{{- end }}
{{- end }}

{{/* A map as environment variables; those that are null are left out. */}}
{{- define "ztunnel.variables" -}}
{{- $variables := list }}
{{- range $name, $value := . }}
{{- if not (kindIs "invalid" $value) }}
{{- $variables = append $variables (dict "name" $name "value" (include "ztunnel.string" $value)) }}
{{- end }}
{{- end }}
{{- with $variables }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{/* The image, whole or put together. */}}
{{- define "ztunnel.image" -}}
{{- if contains "/" .Values.image }}
{{- .Values.image }}
{{- else }}
{{- printf "%s/%s:%s" .Values.hub .Values.image (include "ztunnel.string" .Values.tag) }}
{{- with .Values.variant }}-{{ . }}{{ end }}
{{- end }}
{{- end }}

{{/* The address of istiod. */}}
{{- define "ztunnel.istiod" -}}
istiod{{ with .Values.revision }}-{{ . }}{{ end }}.{{ .Values.istioNamespace }}.svc:15012
{{- end }}

{{/* Whether istiod's root comes from a ClusterTrustBundle; `true` or nothing. */}}
{{- define "ztunnel.cluster-trust-bundle" -}}
{{- if eq (get (.Values.env | default dict) "ENABLE_CLUSTER_TRUST_BUNDLE_API" | toString) "true" }}true{{ end }}
{{- end }}
