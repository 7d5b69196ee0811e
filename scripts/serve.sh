#!/usr/bin/env bash
# Serve an engine directory until it is interrupted: scripts/serve.sh [ENGINE_DIR] [OPTION ...]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh cpu
engine=engines/nvlm-d-mini-cpu
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    engine=$1
    shift
fi
exec nvlm-trt serve "$engine" "$@"
