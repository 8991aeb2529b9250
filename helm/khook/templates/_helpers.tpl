{{/* The name in labels. */}}
{{- define "khook.name" -}}
{{- default .Chart.Name .Values.nameOverride }}
{{- end }}

{{/* The name of the objects: the release's, where it has the chart's in it. A Service's name
has 63 letters at most, and "-metrics" is put behind this one. */}}
{{- define "khook.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- $name = .Values.fullnameOverride }}
{{- else if contains $name .Release.Name }}
{{- $name = .Release.Name }}
{{- else }}
{{- $name = printf "%s-%s" .Release.Name $name }}
{{- end }}
{{- $name | trunc 55 | regexFind "^.*[^-]" }}
{{- end }}

{{/* The Lease of this release. Two releases must not wait for each other. */}}
{{- define "khook.leaseName" -}}
{{- default (include "khook.fullname" .) .Values.controller.leaderElection.resourceName }}
{{- end }}

{{/* The namespace khook runs in. */}}
{{- define "khook.namespace" -}}
{{- ternary .Values.namespace.name .Release.Namespace .Values.namespace.create }}
{{- end }}

{{/* What the Deployment selects by. It cannot be changed, and is what it was in the Go khook's chart. */}}
{{- define "khook.selectorLabels" -}}
app.kubernetes.io/name: {{ include "khook.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The labels of all that the chart makes. */}}
{{- define "khook.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "khook.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The service account khook runs as. */}}
{{- define "khook.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "khook.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Who is given rights. */}}
{{- define "khook.subjects" -}}
subjects:
  - kind: ServiceAccount
    name: {{ include "khook.serviceAccountName" . }}
    namespace: {{ include "khook.namespace" . }}
{{- end }}

{{/* The image of khook. */}}
{{- define "khook.image" -}}
{{- with .Values.image }}
{{- with .registry }}{{ . }}/{{ end }}{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* What khook does where it watches. */}}
{{- define "khook.rules" -}}
rules:
  - apiGroups: [kagent.dev]
    resources: [hooks]
    verbs: [get, list, watch]
  # The memory of every incident.
  - apiGroups: [kagent.dev]
    resources: [hooks/status]
    verbs: [patch]
  - apiGroups: [""]
    resources: [pods]
    verbs: [get, list, watch]
  # Read: trouble. Written: what khook says on a Hook.
  - apiGroups: [events.k8s.io]
    resources: [events]
    verbs: [list, watch, create, patch]
{{- end }}

{{/* A number without an exponent, or a text as it is. */}}
{{- define "khook.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* A setting of khook as an environment variable. */}}
{{- define "khook.variable" -}}
{{- $value := index . 1 }}
- name: {{ index . 0 }}
  value: {{ include "khook.text" $value | quote }}
{{- end }}

{{/* The file with the token for kagent. */}}
{{- define "khook.tokenFile" -}}
/var/run/secrets/khook/kagent/{{ ternary "token" .Values.kagent.existingSecret.key .Values.kagent.projectedToken.enabled }}
{{- end }}

{{/* The environment of khook, before extraEnv. */}}
{{- define "khook.env" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: LEASE_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- include "khook.variable" (list "KAGENT_BASE_URL" .Values.kagent.apiUrl) }}
{{- include "khook.variable" (list "KAGENT_USER_ID" .Values.kagent.userId) }}
{{- include "khook.variable" (list "KAGENT_API_TIMEOUT" .Values.kagent.timeout) }}
{{- include "khook.variable" (list "ATTEMPTS_PER_ROUND" .Values.kagent.retryAttempts) }}
{{- include "khook.variable" (list "RETRY_BASE" .Values.kagent.retryBackoff) }}
{{- include "khook.variable" (list "KAGENT_PROTOCOL" .Values.kagent.protocol) }}
{{- with .Values.kagent.uiUrl }}
{{- include "khook.variable" (list "KAGENT_UI_URL" .) }}
{{- end }}
{{- if or .Values.kagent.existingSecret.name .Values.kagent.projectedToken.enabled }}
{{- include "khook.variable" (list "KAGENT_API_KEY_FILE" (include "khook.tokenFile" .)) }}
{{- end }}
{{- include "khook.variable" (list "LOG_LEVEL" .Values.controller.logLevel) }}
{{- include "khook.variable" (list "LOG_FORMAT" .Values.controller.logFormat) }}
{{- include "khook.variable" (list "LEADER_ELECTION" .Values.controller.leaderElection.enabled) }}
{{- include "khook.variable" (list "LEASE_NAME" (include "khook.leaseName" .)) }}
{{- include "khook.variable" (list "REPEAT_INTERVAL" (printf "%sm" (include "khook.text" .Values.controller.deduplication.timeoutMinutes))) }}
{{- include "khook.variable" (list "SHOW_ANSWERS" .Values.showAnswers) }}
{{- include "khook.variable" (list "METRICS_PORT" .Values.metrics.port) }}
{{- include "khook.variable" (list "HEALTH_PORT" .Values.healthCheck.port) }}
{{- if .Values.dashboard.enabled }}
{{- include "khook.variable" (list "DASHBOARD_PORT" .Values.dashboard.port) }}
{{- end }}
{{- with .Values.watchNamespaces }}
{{- include "khook.variable" (list "WATCH_NAMESPACES" (join "," .)) }}
{{- end }}
{{- with .Values.allowedAgents }}
{{- include "khook.variable" (list "ALLOWED_AGENTS" (toJson .)) }}
{{- end }}
{{- with .Values.directAgents.hosts }}
{{- include "khook.variable" (list "DIRECT_AGENT_HOSTS" (join "," .)) }}
{{- end }}
{{- with .Values.traces }}
{{- if .endpoint }}
{{- include "khook.variable" (list "OTEL_EXPORTER_OTLP_ENDPOINT" .endpoint) }}
{{- include "khook.variable" (list "OTEL_EXPORTER_OTLP_PROTOCOL" .protocol) }}
{{- include "khook.variable" (list "OTEL_TRACES_SAMPLER" .sampler) }}
{{- include "khook.variable" (list "OTEL_TRACES_SAMPLER_ARG" .samplerArg) }}
{{- if .headersSecret.name }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef:
      name: {{ .headersSecret.name }}
      key: {{ .headersSecret.key }}
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $value := .Values.settings }}
{{- include "khook.variable" (list (snakecase $name | upper) $value) }}
{{- end }}
{{- end }}

{{/* An egress rule to a host and its port: by its namespace where it is a Service's name, by its address where it
is one, else to anywhere. Without a port: 80 and 443 at a name outside of the cluster, else every port. */}}
{{- define "khook.egress" -}}
{{- $host := index . 0 | trimAll "[]" | lower }}
{{- $service := trimSuffix ".cluster.local" (trimSuffix "." $host) }}
{{- $ports := list }}
{{- with index . 1 }}
{{- $ports = list . }}
{{- end }}
{{- $rule := dict }}
{{- if hasSuffix ".svc" $service }}
{{- $namespace := dict "kubernetes.io/metadata.name" (trimSuffix ".svc" $service | splitList "." | last) }}
{{- $_ := set $rule "to" (list (dict "namespaceSelector" (dict "matchLabels" $namespace))) }}
{{- else if or (contains ":" $host) (regexMatch "^[0-9./]+$" $host) }}
{{- $all := ternary "128" "32" (contains ":" $host) }}
{{- $cidr := ternary $host (printf "%s/%s" $host $all) (contains "/" $host) }}
{{- $_ := set $rule "to" (list (dict "ipBlock" (dict "cidr" $cidr))) }}
{{- else if and (not $ports) (ne $host "*") }}
{{- $ports = list 80 443 }}
{{- end }}
{{- range $ports }}
{{- $_ := set $rule "ports" (append ($rule.ports | default list) (dict "protocol" "TCP" "port" (int .))) }}
{{- end }}
{{- list $rule | toYaml }}
{{- end }}

{{/* An egress rule to the server of a URL. */}}
{{- define "khook.egressToUrl" -}}
{{- $url := urlParse . }}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" }}
{{- include "khook.egress" (list $url.hostname (default (ternary "443" "80" (eq $url.scheme "https")) $port)) }}
{{- end }}

{{/* What a schema cannot say of values. */}}
{{- define "khook.check" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "khook.fullname" .)) }}
{{- fail (printf "release %s gives the name %s, which no Service can have (it begins with a letter and has no dot): set fullnameOverride" .Release.Name (include "khook.fullname" .)) }}
{{- end }}
{{- $seen := dict }}
{{- range .Values.extraEnv }}
{{- with get (dict "METRICS_PORT" "metrics.port" "HEALTH_PORT" "healthCheck.port" "DASHBOARD_PORT" "dashboard.port") .name }}
{{- fail (printf "extraEnv has a port, but probes, Services and NetworkPolicy would not know of it: set %s instead" .) }}
{{- end }}
{{- if hasKey $seen .name }}
{{- fail (printf "extraEnv has %s twice: keep one of them" .name) }}
{{- end }}
{{- $_ := set $seen .name true }}
{{- end }}
{{- if and .Values.kagent.existingSecret.name .Values.kagent.projectedToken.enabled }}
{{- fail "kagent.existingSecret.name and kagent.projectedToken.enabled are both set, but khook has one token for kagent: keep one of them" }}
{{- end }}
{{- if eq (int .Values.metrics.port) (int .Values.healthCheck.port) }}
{{- fail (printf "metrics.port and healthCheck.port are both %d, but must be two ports" (int .Values.metrics.port)) }}
{{- end }}
{{- if and .Values.dashboard.enabled (has (int .Values.dashboard.port) (list (int .Values.metrics.port) (int .Values.healthCheck.port))) }}
{{- fail (printf "dashboard.port is %d, but must be another than metrics.port and healthCheck.port" (int .Values.dashboard.port)) }}
{{- end }}
{{- if and (not .Values.metrics.enabled) .Values.metrics.serviceMonitor.enabled }}
{{- fail "metrics.serviceMonitor.enabled needs the Service of metrics.enabled: set that, or use metrics.podMonitor" }}
{{- end }}
{{- end }}
