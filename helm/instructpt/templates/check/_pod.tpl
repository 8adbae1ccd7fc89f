{{- /* Hook annotations, from (root, weight): with `helm test`, and after install and upgrade where check.enabled. */ -}}
{{- define "instructpt.checkHook" -}}
helm.sh/hook: test{{ if .root.Values.check.enabled }},post-install,post-upgrade{{ end }}
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{- define "instructpt.checkName" -}}
{{- include "instructpt.fullname" . }}-check
{{- end }}
