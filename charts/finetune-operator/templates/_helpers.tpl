{{- define "finetune.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimAll "-." -}}
{{- end -}}

{{- define "finetune.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimAll "-." -}}
{{- else -}}
{{- $name := include "finetune.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimAll "-." -}}
{{- end -}}
{{- end -}}

{{- define "finetune.selector" -}}
app.kubernetes.io/name: {{ include "finetune.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* Name of the operator's roles. It follows from the instance, not from the release: Helm then refuses a second release
     that would handle the same custom resources, because the first one owns the role. */}}
{{- define "finetune.claim" -}}
{{- ternary (printf "finetune-operator-%s" .Values.operator.instance) "finetune-operator" (not (empty .Values.operator.instance)) -}}
{{- end -}}

{{/* Not managed-by: the operator sets that label on its own objects, with its name as the value. */}}
{{- define "finetune.labels" -}}
{{ include "finetune.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: finetune-operator
app.kubernetes.io/version: {{ include "finetune.label" .Chart.AppVersion }}
helm.sh/chart: {{ include "finetune.label" (printf "%s-%s" .Chart.Name .Chart.Version) }}
{{- end -}}

{{/* A version as a label's value, which may not hold the "+" of a build's metadata. */}}
{{- define "finetune.label" -}}
{{- . | replace "+" "_" | trunc 63 | trimAll "-._" | quote -}}
{{- end -}}

{{/* Reference of an image: list of the root context and {registry, repository, tag, digest}. */}}
{{- define "finetune.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $path := printf "%s/%s" (default $root.Values.images.registry $image.registry) $image.repository | trimPrefix "/" -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $path $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $path (coalesce $image.tag $root.Values.images.tag $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The operator's configuration, which operator/finetune_operator/settings.py reads. */}}
{{- define "finetune.config" -}}
images:
  data: {{ include "finetune.image" (list . .Values.images.data) }}
  prepare: {{ include "finetune.image" (list . .Values.images.prepare) }}
  jobs: {{ include "finetune.image" (list . .Values.images.jobs) }}
  quantize: {{ include "finetune.image" (list . .Values.images.quantize) }}
  proxy: {{ include "finetune.image" (list . .Values.images.proxy) }}
  evaluateVllm: {{ if .Values.images.evaluateVllm.repository }}{{ include "finetune.image" (list . .Values.images.evaluateVllm) }}{{ else }}""{{ end }}
  pullPolicy: {{ .Values.images.pullPolicy }}
  pullSecrets: {{ toJson .Values.images.pullSecrets }}
{{- $account := dict "serviceAccountName" .Values.runner.serviceAccountName }}
profiles:
  {{- range $name, $profile := .Values.profiles }}
  {{ $name | quote }}:
    {{- merge (deepCopy $profile) $account | toYaml | nindent 4 }}
  {{- end }}
runtimes:
  {{- range $name, $runtime := .Values.runtimes }}
  {{ $name | quote }}:
    image: {{ include "finetune.image" (list $ $runtime.image) }}
    {{- merge (omit $runtime "image") $account | toYaml | nindent 4 }}
  {{- else }} {}
  {{- end }}
metricContainers:
  {{- range $name, $metric := .Values.metricContainers }}
  {{ $name | quote }}:
    image: {{ include "finetune.image" (list $ $metric.image) }}
    {{- omit $metric "image" | toYaml | nindent 4 }}
  {{- else }} {}
  {{- end }}
proxy: {{ toJson .Values.proxy }}
{{- if and .Values.tenancy.open .Values.tenancy.rules }}
{{- fail "tenancy.open is true, so tenancy.rules would limit nothing: remove one of them." }}
{{- end }}
tenancy: {{ toJson (pick .Values.tenancy "open" "rules") }}
serving: {{ toJson .Values.serving }}
namespaces: {{ toJson .Values.watchNamespaces }}
instance: {{ .Values.operator.instance | quote }}
lease: {{ dict "namespace" .Release.Namespace "name" (include "finetune.fullname" .) | toJson }}
workers: {{ .Values.operator.workers }}
resyncSeconds: {{ int64 .Values.operator.resyncSeconds }}
keepEndedSeconds: {{ int64 .Values.operator.keepEndedSeconds }}
progressSeconds: {{ int64 .Values.operator.progressSeconds }}
maxConcurrentRollouts: {{ with .Values.operator.maxConcurrentRollouts }}{{ int64 . }}{{ else }}null{{ end }}
disruptionBudgets: {{ .Values.operator.disruptionBudgets }}
policySeconds: {{ int64 .Values.operator.policySeconds }}
{{- end -}}

{{/* The IPv4 (false) or IPv6 (true) part of a list of CIDRs. */}}
{{- define "finetune.cidrs" -}}
{{- $chosen := list -}}
{{- range index . 0 -}}
{{- if eq (contains ":" .) (index $ 1) -}}
{{- $chosen = append $chosen . -}}
{{- end -}}
{{- end -}}
{{- toJson $chosen -}}
{{- end -}}

{{/* What the operator may do: make ways in from outside only where endpoints may have them, and otherwise delete those made before. */}}
{{- define "finetune.rules" -}}
{{ .Files.Get "files/rules.yaml" | trim }}
{{- if .Values.serving.httpRoutes.enabled }}
{{ .Files.Get "files/rules-httproutes.yaml" | trim }}
{{- else if eq .Values.serving.formerRoutes "Delete" }}
{{ .Files.Get "files/rules-former-httproutes.yaml" | trim }}
{{- end }}
{{- if .Values.serving.ingresses.enabled }}
{{ .Files.Get "files/rules-ingresses.yaml" | trim }}
{{- else if eq .Values.serving.formerRoutes "Delete" }}
{{ .Files.Get "files/rules-former-ingresses.yaml" | trim }}
{{- end }}
{{- end -}}

{{- /* Whether to make an object of the Prometheus operator: "true" or nothing. Of a list: the chart's context, the kind,
and the value that asks for it. */}}
{{- define "finetune.monitors" -}}
{{- $root := index . 0 }}
{{- $known := $root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" (index . 1)) }}
{{- if or $known (eq $root.Values.metrics.withoutCrds "Create") -}}
true
{{- else if eq $root.Values.metrics.withoutCrds "Fail" }}
{{- fail (printf "%s.enabled is true, and the cluster has no %s of monitoring.coreos.com/v1: install the Prometheus operator's CRDs first, or set metrics.withoutCrds to Skip. `helm template` knows no cluster: give it --api-versions monitoring.coreos.com/v1/%s, or set metrics.withoutCrds to Create." (index . 2) (index . 1) (index . 1)) }}
{{- end }}
{{- end }}
