#!/usr/bin/env bash
# Makes gen/ anew from the proto. Needs protoc, and in the PATH:
#   go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
#   go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

module=antiphon.dev/examples/delivery-radius
where=(
  "Mantiphon/v1/options.proto=$module/gen/antiphon/v1;antiphonv1"
  "Mradius/v1/radius.proto=$module/gen/radius/v1;radiusv1"
)
arguments=(-I../../proto -Iproto)
for plugin in go go-grpc; do
  arguments+=("--${plugin}_out=." "--${plugin}_opt=module=$module")
  for place in "${where[@]}"; do arguments+=("--${plugin}_opt=$place"); done
done
${PROTOC:-protoc} "${arguments[@]}" antiphon/v1/options.proto radius/v1/radius.proto
