{{/* What every pod has: the walls of Pod Security `restricted`, the configuration, its secrets. */}}

{{/* (dict "user" 65532 "seccomp" "") */}}
{{- define "fettle.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .user }}
runAsGroup: {{ .user }}
fsGroup: {{ .user }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
{{- if .seccomp }}
  type: Localhost
  localhostProfile: {{ .seccomp }}
{{- else }}
  type: RuntimeDefault
{{- end }}
{{- end -}}

{{- define "fettle.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The pod's part that no component changes. */}}
{{- define "fettle.podBase" -}}
serviceAccountName: {{ include "fettle.fullname" . }}
{{ include "fettle.podWithoutAccount" . }}
{{- end -}}

{{/* As that, for whoever has an account of its own. */}}
{{- define "fettle.podWithoutAccount" -}}
automountServiceAccountToken: false
# Kubernetes would name every Service of the namespace in variables that begin with FETTLE_.
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Where fettle.toml names a secret by its file's name, the program finds it in this folder. */}}
{{- define "fettle.env" -}}
- {name: CREDENTIALS_DIRECTORY, value: /run/secrets/fettle}
{{- end -}}

{{- define "fettle.mounts" -}}
- {name: config, mountPath: /etc/fettle, readOnly: true}
- {name: secrets, mountPath: /run/secrets/fettle, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- end -}}

{{/* (dict "root" $ "config" name-of-ConfigMap "auth" (list keys) "files" (list keys) "servers" true) */}}
{{- define "fettle.volumes" -}}
{{- $root := .root -}}
- name: config
  projected:
    sources:
      - configMap: {name: {{ .config }}, items: [{key: fettle.toml, path: fettle.toml}]}
      {{- with $root.Values.certificates.configMap }}
      - configMap:
          name: {{ . }}
          items: [{key: ca.pem, path: certificates/ca.pem}]
      {{- end }}
- name: secrets
  projected:
    # Their owner is root, and the group is the pod's.
    defaultMode: 0440
    sources:
      - secret:
          name: {{ include "fettle.authSecret" $root }}
          items:
            {{- range .auth }}
            - {key: {{ . }}, path: {{ . }}}
            {{- end }}
      {{- with .files }}
      - secret:
          name: {{ $root.Values.secrets.existingSecret }}
          items:
            {{- range . }}
            - {key: {{ . | quote }}, path: {{ . | quote }}}
            {{- end }}
      {{- end }}
      {{- if .servers }}
      {{- with include "fettle.brokerSecret" $root }}
      - secret: {name: {{ . }}, items: [{key: broker-password, path: broker-password}]}
      {{- end }}
      {{- with include "fettle.databaseSecret" $root }}
      - secret: {name: {{ . }}, items: [{key: database-password, path: database-password}]}
      {{- end }}
      {{- end }}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- end -}}

{{/* Annotations that roll a pod when what it read at its start has changed. Secrets are looked at where there is a cluster. */}}
{{- define "fettle.sums" -}}
checksum/config: {{ include "fettle.config" . | sha256sum }}
{{- with .Values.secrets.existingSecret }}
checksum/secrets: {{ dig "data" dict (default dict (lookup "v1" "Secret" $.Release.Namespace .)) | toJson | sha256sum }}
{{- end }}
{{- end -}}

{{/* Whole pods, since three kinds of objects have a worker in them: (dict "root" $ "once" true). */}}
{{- define "fettle.workerPod" -}}
{{- $root := .root -}}
{{- $worker := $root.Values.worker -}}
metadata:
  labels:
    {{- include "fettle.labels" (dict "root" $root "component" "worker") | nindent 4 }}
    {{- with $worker.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    {{- include "fettle.sums" $root | nindent 4 }}
    # A Run takes an hour, and a pod that is moved for tidiness begins it again elsewhere.
    cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
    karpenter.sh/do-not-disrupt: "true"
    {{- with $worker.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  {{- include "fettle.podBase" $root | nindent 2 }}
  restartPolicy: {{ ternary "Never" "Always" .once }}
  terminationGracePeriodSeconds: {{ include "fettle.workerGrace" $root }}
  {{- with $worker.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- if $worker.ownUserNamespace }}
  hostUsers: false
  {{- end }}
  securityContext:
    {{- include "fettle.podSecurity" (dict "user" 65532 "seccomp" $worker.sandbox.seccompProfile) | nindent 4 }}
  containers:
    - name: worker
      image: {{ include "fettle.image" (dict "root" $root "image" $root.Values.image.worker) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args:
        - --config=/etc/fettle/fettle.toml
        - --data-dir=/var/lib/fettle/worker
        - --internal-listen=0.0.0.0:8081
        {{- if .once }}
        # One Run; none within 25 s, and it ends with success.
        - --once
        {{- end }}
      env:
        {{- include "fettle.env" $root | nindent 8 }}
      ports:
        - {name: internal, containerPort: 8081}
      # A model may be silent for minutes; what must come round is asked for, six minutes at most.
      livenessProbe:
        httpGet: {path: /healthz, port: internal}
        initialDelaySeconds: 10
        periodSeconds: 10
        failureThreshold: 6
      readinessProbe:
        {{- if .once }}
        # A pod that holds no lease yet is on its way to one: KEDA starts no second for the same Run.
        httpGet: {path: /leased, port: internal}
        periodSeconds: 2
        failureThreshold: 1
        {{- else }}
        httpGet: {path: /readyz, port: internal}
        periodSeconds: 5
        {{- end }}
      resources:
        {{- toYaml $worker.resources | nindent 8 }}
      securityContext:
        {{- include "fettle.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        {{- include "fettle.mounts" $root | nindent 8 }}
        - {name: data, mountPath: /var/lib/fettle}
  {{- with $worker.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $worker.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $worker.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumes:
    {{- $files := include "fettle.workerFiles" $root | fromJsonArray }}
    {{- $config := printf "%s-config" (include "fettle.fullname" $root) }}
    {{- include "fettle.volumes" (dict "root" $root "config" $config "auth" (list "worker-key") "files" $files "servers" false) | nindent 4 }}
    - name: data
      emptyDir: {sizeLimit: {{ $worker.workspaceSize }}}
{{- end -}}
