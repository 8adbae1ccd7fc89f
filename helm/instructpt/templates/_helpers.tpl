{{- /* Labels of every object, as YAML. The chart's own win over commonLabels, since selectors go by them. */ -}}
{{- define "instructpt.labels" -}}
{{ toYaml (mustMerge (include "instructpt.chartLabels" . | fromYaml) (deepCopy .Values.commonLabels)) }}
{{- end }}

{{- /* The same of an object that belongs to a component, from (root, component). */ -}}
{{- define "instructpt.componentLabels" -}}
{{ toYaml (mustMerge (dict "app.kubernetes.io/component" .component) (include "instructpt.labels" .root | fromYaml)) }}
{{- end }}

{{- define "instructpt.chartLabels" -}}
app.kubernetes.io/name: {{ include "instructpt.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* Labels that select the operator's pods: they never change during the life of a release. */ -}}
{{- define "instructpt.selectorLabels" -}}
app.kubernetes.io/name: {{ include "instructpt.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- /* Labels that select the pods of the check. */ -}}
{{- define "instructpt.checkLabels" -}}
app.kubernetes.io/name: {{ include "instructpt.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: check
{{- end }}

{{- /* Labels that select the workloads' pods: those of instructpt/plan/naming.py. */ -}}
{{- define "instructpt.workloadLabels" -}}
app.kubernetes.io/managed-by: instructpt-operator
{{- end }}

{{- define "instructpt.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "instructpt.fullname" -}}
{{- $name := include "instructpt.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- printf "%s-operator" (.Release.Name | trunc 31 | trimSuffix "-") }}
{{- else }}
{{- printf "%s-%s-operator" (.Release.Name | trunc 15 | trimSuffix "-") ($name | trunc 15 | trimSuffix "-") }}
{{- end }}
{{- end }}

{{- /* Names of cluster-scoped objects: two releases in two namespaces may share a name. */ -}}
{{- define "instructpt.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "instructpt.fullname" .) }}
{{- end }}

{{- define "instructpt.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "instructpt.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "instructpt.leaseName" -}}
{{- default (include "instructpt.fullname" .) .Values.lease.name }}
{{- end }}

{{- define "instructpt.leaseNamespace" -}}
{{- default .Release.Namespace .Values.lease.namespace }}
{{- end }}

{{- /* The namespace in which the check makes its object: the operator must watch it. */ -}}
{{- define "instructpt.checkNamespace" -}}
{{- if or (not .Values.watchNamespaces) (has .Release.Namespace .Values.watchNamespaces) }}
{{- .Release.Namespace }}
{{- else }}
{{- first .Values.watchNamespaces }}
{{- end }}
{{- end }}

{{- /* A full image name, from (root, image, suffix of the default tag). A digest wins over a tag. */ -}}
{{- define "instructpt.image" -}}
{{- $registry := .root.Values.global.imageRegistry | trimSuffix "/" }}
{{- $name := ternary (printf "%s/%s" $registry .image.repository) .image.repository (ne $registry "") }}
{{- if .image.digest }}
{{- printf "%s@%s" $name .image.digest }}
{{- else }}
{{- printf "%s:%s" $name (default (printf "%s%s" .root.Chart.AppVersion .suffix) .image.tag) }}
{{- end }}
{{- end }}

{{- /* Egress rules for the API server and for DNS. */ -}}
{{- define "instructpt.apiEgress" -}}
{{- $policy := .Values.networkPolicy -}}
# The API server: its pods, if it has any, cannot be selected.
- ports:
    {{- range $policy.apiServer.ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
  {{- with $policy.apiServer.cidrs }}
  to:
    {{- range . }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  {{- end }}
{{- with $policy.dns }}
- to: {{- toYaml . | nindent 4 }}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end }}
{{- end }}

{{- /* What passes the Pod Security Standard `restricted`, and more. The user is that of the image. */ -}}
{{- define "instructpt.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "instructpt.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Combinations of values that a schema cannot refuse. */ -}}
{{- define "instructpt.validate" -}}
{{- if and (not .Values.lease.enabled) (gt (int .Values.replicas) 1) }}
{{- fail "lease.enabled is false, but there is more than one replica: two operators would act at a time" }}
{{- end }}
{{- if not (and (lt (int .Values.lease.retrySeconds) (int .Values.lease.renewDeadlineSeconds)) (lt (int .Values.lease.renewDeadlineSeconds) (int .Values.lease.durationSeconds))) }}
{{- fail "lease: retrySeconds must be below renewDeadlineSeconds, and that below durationSeconds" }}
{{- end }}
{{- if eq (int .Values.metrics.port) (int .Values.health.port) }}
{{- fail "metrics.port and health.port are the same" }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.service.enabled) }}
{{- fail "metrics.serviceMonitor.enabled needs metrics.service.enabled" }}
{{- end }}
{{- end }}

{{- /* Rules of the operator in the namespaces it works in. No verb on secrets, none on nodes, pods are read-only. */ -}}
{{- define "instructpt.rules" -}}
# The four kinds that pipelines create.
- apiGroups: [instructpt.dev]
  resources: [corpora, evaluationjobs, synthesisjobs, trainingjobs]
  verbs: [get, list, watch, create, patch, delete]
# Pipelines come from users; they are removed when their time to live is over.
- apiGroups: [instructpt.dev]
  resources: [instructionpretrainings]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [instructpt.dev]
  resources:
    - corpora/status
    - evaluationjobs/status
    - instructionpretrainings/status
    - synthesisjobs/status
    - trainingjobs/status
  verbs: [patch]
# For blockOwnerDeletion in children, where the admission plugin OwnerReferencesPermissionEnforcement is on.
- apiGroups: [instructpt.dev]
  resources:
    - corpora/finalizers
    - evaluationjobs/finalizers
    - instructionpretrainings/finalizers
    - synthesisjobs/finalizers
    - trainingjobs/finalizers
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [get, list, watch, create, patch, delete]
# Run specifications of workers: read by name alone, never changed, and removed with their owner.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create]
# For the reasons of pods that do not run, and for the last words of those that ended.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list]
# Whether the namespace of a pod that cannot go is being deleted.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
# Why a volume cannot be mounted, or a pod not be created, stands in an event alone.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
