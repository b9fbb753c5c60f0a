{{- define "antiphon.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "antiphon.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "antiphon.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "antiphon.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "antiphon.selector" -}}
app.kubernetes.io/name: {{ include "antiphon.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "antiphon.labels" -}}
{{ include "antiphon.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end -}}

{{- define "antiphon.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "antiphon.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "antiphon.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* Milliseconds of a duration as docs/configuration.md writes it. */}}
{{- define "antiphon.milliseconds" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "(ms|s|m|h)$" . -}}
{{- $number | mul (get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) $unit) -}}
{{- end -}}

{{- define "antiphon.seconds" -}}
{{- $milliseconds := include "antiphon.milliseconds" . | int64 -}}
{{- div (add $milliseconds 999) 1000 -}}
{{- end -}}

{{/* Notice, drain, the 5 s in which threads are joined, the reply topic's end, and some to spare. */}}
{{- define "antiphon.gracePeriod" -}}
{{- $drain := .Values.config.drain -}}
{{- add (include "antiphon.seconds" $drain.notice) (include "antiphon.seconds" $drain.timeout) 15 -}}
{{- end -}}

{{/* The settings: those of the values, and what the chart knows itself. */}}
{{- define "antiphon.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $own := dict "grpc" (dict "listen" "0.0.0.0:50051") "admin" (dict "listen" "0.0.0.0:9464") -}}
{{- if .Values.admin.tokenSecret -}}
{{- $_ := set $own.admin "token_file" "/run/secrets/admin/token" -}}
{{- end -}}
{{- if .Values.tls.secret -}}
{{- $tls := dict "cert_file" "/run/secrets/tls/tls.crt" "key_file" "/run/secrets/tls/tls.key" -}}
{{- if .Values.tls.clientCa -}}
{{- $_ := set $tls "client_ca_file" "/run/secrets/tls/ca.crt" -}}
{{- end -}}
{{- $_ := set $own.grpc "tls" $tls -}}
{{- end -}}
{{- $kafka := dict -}}
{{- if .Values.kafka.passwordSecret -}}
{{- $_ := set $kafka "sasl" (dict "password_file" (printf "/run/secrets/kafka/%s" .Values.kafka.passwordKey)) -}}
{{- end -}}
{{- if .Values.kafka.tlsSecret -}}
{{- $tls := dict "ca_file" "/run/secrets/kafka-tls/ca.crt" -}}
{{- if .Values.kafka.clientCertificate -}}
{{- $tls = merge $tls (dict "cert_file" "/run/secrets/kafka-tls/tls.crt" "key_file" "/run/secrets/kafka-tls/tls.key") -}}
{{- end -}}
{{- $_ := set $kafka "tls" $tls -}}
{{- end -}}
{{- $_ := set $own "kafka" $kafka -}}
{{- $protos := .Values.protos -}}
{{- $served := list -}}
{{- range $path := keys (include "antiphon.protos" . | fromYaml) | sortAlpha -}}
{{- if not (has $path $protos.importedOnly) -}}
{{- $served = append $served (printf "/etc/antiphon/proto/%s" $path) -}}
{{- end -}}
{{- end -}}
{{- $sets := list -}}
{{- if $protos.descriptorSet -}}
{{- $sets = append $sets "/etc/antiphon/sets/descriptor-set.binpb" -}}
{{- end -}}
{{- range $key := $protos.existingKeys -}}
{{- $sets = append $sets (printf "/etc/antiphon/existing/%s" $key) -}}
{{- end -}}
{{- $proto := dict -}}
{{- if $served -}}
{{- $_ := set $proto "files" $served -}}
{{- $_ := set $proto "include_paths" (list "/etc/antiphon/proto") -}}
{{- end -}}
{{- if $sets -}}
{{- $_ := set $proto "descriptor_sets" $sets -}}
{{- end -}}
{{- $_ := set $own "proto" $proto -}}
{{- mergeOverwrite $config $own | toJson -}}
{{- end -}}

{{/* Path to text of the protos; the sample when nothing else is served. */}}
{{- define "antiphon.protos" -}}
{{- $protos := .Values.protos -}}
{{- if or $protos.files $protos.descriptorSet $protos.existingConfigMap -}}
{{- $protos.files | toYaml -}}
{{- else -}}
{{- dict "payments/v1/payments.proto" (.Files.Get "files/sample.proto") | toYaml -}}
{{- end -}}
{{- end -}}

{{/* TOML of a map: values first, then a section for each map in it. Whole numbers
     come as floats from YAML and are written as what they are. */}}
{{- define "antiphon.toml" -}}
{{- $path := .path -}}
{{- range $name, $value := .map -}}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value)) }}
{{ $name }} = {{ include "antiphon.tomlValue" $value }}
{{- end -}}
{{- end -}}
{{- range $name, $value := .map -}}
{{- if kindIs "map" $value -}}
{{- $key := ternary $name ($name | quote) (regexMatch "^[A-Za-z0-9_-]+$" $name) -}}
{{- $section := ternary $key (printf "%s.%s" $path $key) (eq $path "") -}}
{{- $plain := false -}}
{{- range $value -}}{{- if not (kindIs "map" .) -}}{{- $plain = true -}}{{- end -}}{{- end -}}
{{- if $plain }}

[{{ $section }}]
{{- end -}}
{{- include "antiphon.toml" (dict "path" $section "map" $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "antiphon.tomlValue" -}}
{{- if kindIs "float64" . -}}
{{- if eq (floor .) . -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- else if kindIs "slice" . -}}
[{{- range $at, $item := . -}}{{- if $at }}, {{ end -}}{{- include "antiphon.tomlValue" $item -}}{{- end -}}]
{{- else -}}
{{- toRawJson . -}}
{{- end -}}
{{- end -}}

{{/* What the schema can't say, since it is about several values. */}}
{{- define "antiphon.validate" -}}
{{- $config := .Values.config -}}
{{- $reply := default dict $config.reply -}}
{{- $ordinal := eq (toString (default "" $reply.ordinal)) "hostname" -}}
{{- if lt (include "antiphon.milliseconds" $config.drain.timeout | int64) (include "antiphon.milliseconds" .Values.longestCall | int64) -}}
{{- fail (printf "config.drain.timeout (%s) is less than longestCall (%s): calls in flight would be cut when a pod goes" $config.drain.timeout .Values.longestCall) -}}
{{- end -}}
{{- range $sections := list "service" "method" -}}
{{- range $name, $settings := default dict (get $config $sections) -}}
{{- range $setting := list "timeout" "timeout_max" -}}
{{- with get $settings $setting -}}
{{- if gt (include "antiphon.milliseconds" . | int64) (include "antiphon.milliseconds" $.Values.longestCall | int64) -}}
{{- fail (printf "config.%s.%q.%s (%s) is more than longestCall (%s)" $sections $name $setting . $.Values.longestCall) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $ordinal (ne .Values.workload.kind "StatefulSet") -}}
{{- fail "config.reply.ordinal = \"hostname\" counts on the number at the end of a pod's name: set workload.kind to StatefulSet, or leave the ordinal out and let pods lease their partitions" -}}
{{- end -}}
{{- if hasKey $reply "instance" -}}
{{- fail "config.reply.instance would give every pod the same reply topic; leave it out" -}}
{{- end -}}
{{- if eq (default "" $reply.routing) "partition" -}}
{{- $pods := .Values.replicas -}}
{{- if .Values.autoscaling.enabled -}}{{- $pods = .Values.autoscaling.maxReplicas -}}{{- end -}}
{{- if and (not $ordinal) (eq .Values.workload.kind "Deployment") -}}{{- $pods = add $pods 1 -}}{{- end -}}
{{- $needed := mul $pods $config.shards -}}
{{- $partitions := default 32 $reply.partitions -}}
{{- if gt (int64 $needed) (int64 $partitions) -}}
{{- fail (printf "config.reply.partitions (%v) is less than the %v that %v pods with %v shards need at most, one more pod during a roll-out included" $partitions $needed $pods $config.shards) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and .Values.protos.existingConfigMap (not .Values.protos.existingKeys) -}}
{{- fail "protos.existingKeys: say which keys of protos.existingConfigMap are descriptor sets to serve" -}}
{{- end -}}
{{- if and .Values.protos.existingKeys (not .Values.protos.existingConfigMap) -}}
{{- fail "protos.existingKeys is set, and protos.existingConfigMap is not" -}}
{{- end -}}
{{- range .Values.protos.importedOnly -}}
{{- if not (hasKey $.Values.protos.files .) -}}
{{- fail (printf "protos.importedOnly: %q is not in protos.files" .) -}}
{{- end -}}
{{- end -}}
{{- $sasl := default dict $config.kafka.sasl -}}
{{- if and $sasl.mechanism (not .Values.kafka.passwordSecret) -}}
{{- fail "config.kafka.sasl.mechanism is set: name the Secret with the password in kafka.passwordSecret" -}}
{{- end -}}
{{- if and .Values.kafka.passwordSecret (not $sasl.mechanism) -}}
{{- fail "kafka.passwordSecret is set: say how it is used in config.kafka.sasl.mechanism (and username)" -}}
{{- end -}}
{{- if and .Values.tls.clientCa (not .Values.tls.secret) -}}
{{- fail "tls.clientCa takes ca.crt from tls.secret, which is not set" -}}
{{- end -}}
{{- if and .Values.kafka.clientCertificate (not .Values.kafka.tlsSecret) -}}
{{- fail "kafka.clientCertificate takes tls.crt and tls.key from kafka.tlsSecret, which is not set" -}}
{{- end -}}
{{- end -}}
