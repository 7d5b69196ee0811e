#!/usr/bin/env bash
# Engines of several precisions side by side, beside the torch reference: report.json, report.md and plots.
#
#   scripts/bench.sh [OPTION ...]                  builds the default recipe in fp32, bf16 and int8_wo, and measures them
#   scripts/bench.sh ENGINE_DIR ... [OPTION ...]   engine directories of yours; options of `nvlm-trt bench`
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh cpu,plots

if [ $# -eq 0 ] || [ "${1#-}" != "$1" ]; then
    engines=()
    for precision in fp32 bf16 int8_wo; do
        vision=bf16
        [ "$precision" = fp32 ] && vision=fp32
        engine=engines/nvlm-d-mini-$precision
        mkdir -p "$engine"
        sed -e "s/^vision_precision: .*/vision_precision: $vision/" \
            -e "s/^decoder_precision: .*/decoder_precision: $precision/" \
            build/recipes/nvlm-d-mini-cpu.yaml >"engines/nvlm-d-mini-$precision.yaml"
        nvlm-trt build "engines/nvlm-d-mini-$precision.yaml" --output "$engine" >&2
        engines+=("$engine")
    done
    set -- "${engines[@]}" "$@"
fi
exec nvlm-trt bench "$@"
