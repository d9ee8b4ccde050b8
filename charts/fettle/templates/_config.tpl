{{/* fettle.toml: what the values say, and above it what follows from the cluster. Which secrets it names, and whose they are. */}}

{{/* The whole configuration as YAML. */}}
{{- define "fettle.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $fullname := include "fettle.fullname" . -}}
{{- $own := dict
      "server" (dict "listen" "0.0.0.0:8080" "internal_listen" "0.0.0.0:8081")
      "auth" (dict "admin_key_file" "admin-key" "worker_key_file" "worker-key" "scale_key_file" "scale-key")
      "agent" (dict "dashboard_url" (include "fettle.internalUrl" .) "workers" 1
                    "sandbox" (dict "min_level" .Values.worker.sandbox.minLevel)) -}}
{{- with include "fettle.drainFinish" . -}}
{{- $_ := set (get $own "agent") "drain_finish" . -}}
{{- end -}}
{{- if .Values.dashboard.workerView.enabled -}}
{{- $selector := include "fettle.selector" (dict "root" . "component" "worker") | fromYaml -}}
{{- $pairs := list -}}
{{- range $name := keys $selector | sortAlpha -}}{{- $pairs = append $pairs (printf "%s=%s" $name (get $selector $name)) -}}{{- end -}}
{{- $_ := set (get $own "server") "worker_pods" (join "," $pairs) -}}
{{- end -}}
{{- if include "fettle.sealingKey" . -}}
{{- $_ := set (get $own "auth") "secrets_key_file" "secrets-key" -}}
{{- end -}}
{{- if include "fettle.runTokenKey" . -}}
{{- $_ := set $own "gateway" (dict "run_token_key_file" "run-token-key") -}}
{{- end -}}
{{- if .Values.postgres.enabled -}}
{{- $_ := set $own "store" (dict "url" (printf "postgres://%s-postgres.%s.svc:5432/fettle" $fullname .Release.Namespace)
      "user" "fettle" "password_file" "database-password" "tls" "off") -}}
{{- end -}}
{{- if .Values.redis.enabled -}}
{{- $_ := set $own "transport" (dict "url" (printf "redis://%s-redis.%s.svc:6379" $fullname .Release.Namespace)
      "password_file" "broker-password") -}}
{{- else if .Values.rabbitmq.enabled -}}
{{- $_ := set $own "transport" (dict "url" (printf "amqp://%s-rabbitmq.%s.svc:5672" $fullname .Release.Namespace)
      "user" "fettle" "password_file" "broker-password") -}}
{{- end -}}
{{- toYaml (mergeOverwrite $config $own) -}}
{{- end -}}

{{/* The chart has the key that secrets entered in the browser are sealed with. With a file as the ledger each dashboard makes its own. */}}
{{- define "fettle.sealingKey" -}}
{{- if and (include "fettle.usesPostgres" .) (not (dig "auth" "secrets_key_file" "" .Values.config)) -}}yes{{- end -}}
{{- end -}}

{{/* The chart has the key that Runs' tokens are signed with: the dashboard's and the gateway's, and no worker's, so that these cannot ask
for the keys of models. */}}
{{- define "fettle.runTokenKey" -}}
{{- if and .Values.inference.enabled (not (dig "gateway" "run_token_key_file" "" .Values.config)) -}}yes{{- end -}}
{{- end -}}

{{/* Keys of Fettle's own parts that the dashboard gets, as a JSON list; they are all there are. */}}
{{- define "fettle.dashboardKeys" -}}
{{- $keys := list "admin-key" "worker-key" "scale-key" -}}
{{- if include "fettle.sealingKey" . -}}{{- $keys = append $keys "secrets-key" -}}{{- end -}}
{{- if include "fettle.runTokenKey" . -}}{{- $keys = append $keys "run-token-key" -}}{{- end -}}
{{- $keys | toJson -}}
{{- end -}}

{{/* Those that the gateway gets. */}}
{{- define "fettle.gatewayKeys" -}}
{{- $keys := list "worker-key" -}}
{{- if include "fettle.runTokenKey" . -}}{{- $keys = append $keys "run-token-key" -}}{{- end -}}
{{- $keys | toJson -}}
{{- end -}}

{{/* Keys in `secrets.existingSecret` that workers get, as a JSON list. They run what strangers wrote: nothing else is theirs. */}}
{{- define "fettle.workerFiles" -}}
{{- $files := list -}}
{{- with dig "forge" "read_token_file" "" .Values.config -}}{{- $files = append $files (base .) -}}{{- end -}}
{{- with dig "transport" "worker_password_file" "" .Values.config -}}{{- $files = append $files (base .) -}}{{- end -}}
{{- range dig "gateway" "models" list .Values.config -}}
{{- with get . "api_key_file" -}}{{- $files = append $files (base .) -}}{{- end -}}
{{- end -}}
{{- $files | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* Those that the gateway gets: what it asks providers with, and what it knows callers by. */}}
{{- define "fettle.gatewayFiles" -}}
{{- $files := list -}}
{{- range dig "gateway" "models" list .Values.config -}}
{{- with get . "api_key_file" -}}{{- $files = append $files (base .) -}}{{- end -}}
{{- end -}}
{{- with dig "gateway" "keys_file" "" .Values.config -}}{{- $files = append $files (base .) -}}{{- end -}}
{{- with dig "gateway" "run_token_key_file" "" .Values.config -}}{{- $files = append $files (base .) -}}{{- end -}}
{{- $files | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* All keys in `secrets.existingSecret` that the values name, as a JSON list. */}}
{{- define "fettle.files" -}}
{{- $files := concat (include "fettle.workerFiles" . | fromJsonArray) (include "fettle.gatewayFiles" . | fromJsonArray) -}}
{{- $named := list (list "forge" "app_key_file") (list "forge" "write_token_file") (list "forge" "webhook_secret_file")
      (list "forge" "webhook_secret_previous_file") (list "store" "password_file") (list "transport" "password_file") -}}
{{- range $named -}}
{{- with dig (index . 0) (index . 1) "" $.Values.config -}}{{- $files = append $files (base .) -}}{{- end -}}
{{- end -}}
{{- with dig "auth" "secrets_key_file" "" .Values.config -}}{{- $files = append $files (base .) -}}{{- end -}}
{{- with dig "auth" "oidc" "client_secret_file" "" .Values.config -}}{{- $files = append $files (base .) -}}{{- end -}}
{{- $files | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* TOML of a table: (dict "table" map "path" ""). Helm's own toToml writes whole numbers as floats, which are refused. */}}
{{- define "fettle.toml" -}}
{{- $path := .path -}}
{{- $table := .table -}}
{{- range $key := keys $table | sortAlpha }}
{{- $value := get $table $key }}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value) (include "fettle.isTables" $value)) }}
{{ $key }} = {{ include "fettle.tomlValue" $value }}
{{- end }}
{{- end }}
{{- range $key := keys $table | sortAlpha }}
{{- $value := get $table $key }}
{{- $name := ternary $key (printf "%s.%s" $path $key) (empty $path) }}
{{- if kindIs "map" $value }}

[{{ $name }}]
{{- include "fettle.toml" (dict "table" $value "path" $name) }}
{{- else if include "fettle.isTables" $value }}
{{- range $value }}

[[{{ $name }}]]
{{- include "fettle.toml" (dict "table" . "path" $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "fettle.isTables" -}}
{{- if kindIs "slice" . -}}{{- if . -}}{{- if kindIs "map" (first .) -}}yes{{- end -}}{{- end -}}{{- end -}}
{{- end -}}

{{- define "fettle.tomlValue" -}}
{{- if kindIs "slice" . -}}
[{{ range $index, $one := . }}{{ if $index }}, {{ end }}{{ include "fettle.tomlValue" $one }}{{ end }}]
{{- else if or (kindIs "float64" .) (kindIs "int64" .) (kindIs "int" .) -}}
{{- int64 . -}}
{{- else -}}
{{- toJson . -}}
{{- end -}}
{{- end -}}
