#!/usr/bin/env bash
# A long run against a server, every answer checked, every process watched: scripts/soak.sh [OPTION ...]
#
#   scripts/soak.sh --duration 1h                 builds the miniature with small caches, starts its server, soaks it
#   scripts/soak.sh --engine DIR --http HOST:PORT --grpc HOST:PORT    soaks a server that runs here
#   scripts/soak.sh --help                        all options
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh cpu,plots

case " $* " in
    *" --engine"* | *" --help "* | *" -h "*) exec python -m scripts.soak "$@" ;;
esac
engine=engines/soak
nvlm-trt build scripts/soak/recipe.yaml --output "$engine" --quiet >/dev/null
exec python -m scripts.soak --engine "$engine" "$@"
