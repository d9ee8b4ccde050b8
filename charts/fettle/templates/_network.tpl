{{/* Pieces of network policies. */}}

{{/* (dict "root" $ "component" "worker"): a peer within the release. */}}
{{- define "fettle.peer" -}}
podSelector:
  matchLabels:
    {{- include "fettle.selector" . | nindent 4 }}
{{- end -}}

{{/* A peer of another namespace, by name. */}}
{{- define "fettle.namespacePeer" -}}
namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ . }}}}
{{- end -}}

{{- define "fettle.dnsEgress" -}}
# DNS, also by a cache on the node.
- to: [{namespaceSelector: {}}, {ipBlock: {cidr: 169.254.0.0/16}}]
  ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
{{- end -}}

{{/* The public internet and nothing else: no pod, no node, no metadata service. Takes the ports. */}}
{{- define "fettle.publicEgress" -}}
- to:
    - ipBlock:
        cidr: 0.0.0.0/0
        except: [10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16]
    - ipBlock:
        cidr: ::/0
        except: ["fc00::/7", "fe80::/10"]
  ports:
    {{- range . }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end -}}
