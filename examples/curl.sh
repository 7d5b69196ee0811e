#!/bin/sh
# Ask a served NVLM-D about a picture with curl: examples/curl.sh HOST:PORT PICTURE QUESTION   (HTTP port)
set -eu
url="http://$1/v2/models/nvlm"
question="$3"

# JSON carries the picture as base64 text. The body goes through a file: an argument could not hold it.
body="$(mktemp)"
trap 'rm -f "$body"' EXIT
printf '{"text_input": "%s", "image_bytes": ["%s"], "max_tokens": 32, "stream": false}' \
    "$question" "$(base64 < "$2" | tr -d '\n')" > "$body"

# The whole answer at once. The header matters: without it tritonserver reads the body as a form.
curl --silent --show-error --fail-with-body -H 'Content-Type: application/json' --data-binary "@$body" "$url/generate"
echo

# The same as it comes: one line "data: {...}" for each piece, the last one with a finish_reason.
sed 's/"stream": false/"stream": true/' "$body" > "$body.stream"
trap 'rm -f "$body" "$body.stream"' EXIT
curl --silent --show-error --fail-with-body --no-buffer -H 'Content-Type: application/json' \
    --data-binary "@$body.stream" "$url/generate_stream"
