{{/* Names, labels, images, and who of the release is there. Makes no object. */}}

{{- define "fettle.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* 40 characters leave room for the longest suffix and for what Jobs and StatefulSets append. */}}
{{- define "fettle.fullname" -}}
{{- $name := include "fettle.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* (dict "root" $ "component" "worker"): what selects the pods of a component; never changes. */}}
{{- define "fettle.selector" -}}
app.kubernetes.io/name: {{ include "fettle.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "fettle.labels" -}}
{{ include "fettle.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: fettle
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* (dict "root" $ "image" .Values.image.worker) */}}
{{- define "fettle.image" -}}
{{- $image := .image -}}
{{- $registry := default .root.Values.image.registry (get $image "registry") -}}
{{- $name := $image.repository -}}
{{- if $registry -}}{{- $name = printf "%s/%s" (trimSuffix "/" $registry) $name -}}{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* "yes" or nothing, for all that follows. */}}
{{- define "fettle.usesPostgres" -}}
{{- if or .Values.postgres.enabled (dig "store" "url" "" .Values.config) -}}yes{{- end -}}
{{- end -}}

{{/* Which broker there is, ours or another's: redis, rabbitmq or nothing. */}}
{{- define "fettle.broker" -}}
{{- $url := dig "transport" "url" "" .Values.config -}}
{{- if or .Values.redis.enabled (hasPrefix "redis" $url) -}}redis
{{- else if or .Values.rabbitmq.enabled (hasPrefix "amqp" $url) -}}rabbitmq
{{- end -}}
{{- end -}}

{{- define "fettle.authSecret" -}}
{{- default (printf "%s-auth" (include "fettle.fullname" .)) .Values.auth.existingSecret -}}
{{- end -}}

{{- define "fettle.brokerSecret" -}}
{{- $own := printf "%s-broker" (include "fettle.fullname" .) -}}
{{- if .Values.redis.enabled -}}
{{- default $own .Values.redis.existingSecret -}}
{{- else if .Values.rabbitmq.enabled -}}
{{- default $own .Values.rabbitmq.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "fettle.databaseSecret" -}}
{{- if .Values.postgres.enabled -}}
{{- default (printf "%s-database" (include "fettle.fullname" .)) .Values.postgres.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "fettle.dataClaim" -}}
{{- default (printf "%s-data" (include "fettle.fullname" .)) .Values.dashboard.persistence.existingClaim -}}
{{- end -}}

{{- define "fettle.backupClaim" -}}
{{- default (printf "%s-backups" (include "fettle.fullname" .)) .Values.backup.persistence.existingClaim -}}
{{- end -}}

{{- define "fettle.tlsSecret" -}}
{{- default (printf "%s-tls" (include "fettle.fullname" .)) .Values.exposure.tls.secretName -}}
{{- end -}}

{{- define "fettle.internalUrl" -}}
{{- printf "http://%s-internal.%s.svc:8081" (include "fettle.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "fettle.publicUrl" -}}
{{- printf "http://%s-dashboard.%s.svc:8080" (include "fettle.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "fettle.workerGrace" -}}
{{- if eq .Values.worker.scaling "deployment" -}}
{{- .Values.worker.scaledObject.terminationGracePeriodSeconds -}}
{{- else -}}
{{- .Values.worker.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}

{{/* How long a worker that is told to end goes on with its Run: what is left of its time when letting go has its own; four
hours are the most that a worker takes. */}}
{{- define "fettle.drainFinish" -}}
{{- if and .Values.worker.enabled (eq .Values.worker.scaling "deployment") -}}
{{- with sub (int .Values.worker.scaledObject.terminationGracePeriodSeconds) 60 -}}
{{- if gt (int .) 0 -}}{{ min (int .) 14400 }}s{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Keys that a Secret lacks, as a JSON list: (dict "root" $ "secret" name "keys" (list …)). Where nobody can ask a cluster, and where the
Secret is still to come, none. */}}
{{- define "fettle.lacking" -}}
{{- $lacking := list -}}
{{- with lookup "v1" "Secret" .root.Release.Namespace .secret -}}
{{- $data := default dict (get . "data") -}}
{{- range $.keys -}}
{{- if not (get $data .) -}}{{- $lacking = append $lacking . -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $lacking | toJson -}}
{{- end -}}

{{/* A value of a Secret that the release has made before, else a new one: (dict "root" $ "secret" name "key" key). */}}
{{- define "fettle.kept" -}}
{{- $before := lookup "v1" "Secret" .root.Release.Namespace .secret -}}
{{- $value := dig "data" .key "" (default dict $before) -}}
{{- if $value -}}{{- b64dec $value -}}{{- else -}}{{- randAlphaNum 48 -}}{{- end -}}
{{- end -}}
