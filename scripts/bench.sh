#!/usr/bin/env bash
# Engines of several precisions side by side, beside the torch reference: report.json, report.md and plots.
#
#   scripts/bench.sh [OPTION ...]                  builds the default recipe in five precisions, and measures them
#   scripts/bench.sh --small [OPTION ...]          a model of 0.9 B parameters in bf16 and int8: figures of speed
#   scripts/bench.sh ENGINE_DIR ... [OPTION ...]   engine directories of yours; options of `nvlm-trt bench`
#
# The five are fp32, bf16, int8_wo, int8 (vision too) and int4_wo, in engines/bench/. They are built up to
# decoder-compile: what a precision costs is what is measured, so no gate of `verify` stops one, and none has judged
# them; serve what `nvlm-trt build` has finished. Unless options say otherwise: both baselines, accuracy on the task
# that ships with the project, three rounds, and of --transport grpc and http only the default recipe's precisions.
# PRECISIONS="int8" in the environment builds and measures some only; where the one to serve is not among
# them, the first one is served.
# The small model has random weights: no accuracy, one baseline, and the scenarios in place of the load.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh cpu,plots

dry=()
for word; do # nothing is to be built for help, for two reports, and for a server that runs already
    case $word in
    --help | --compare | --url | --url=* | --http-url | --http-url=*) exec nvlm-trt bench "$@" ;;
    --dry-run) dry=(--dry-run) ;;
    esac
done
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    exec nvlm-trt bench "$@"
fi

mkdir -p engines/bench
if [ "${1-}" = --small ]; then
    shift
    model=nvlm-small served=nvlm-small-int8 precisions="${PRECISIONS-bf16 int8}" source=(--checkpoint engines/bench/nvlm-small)
    if [ ! -d engines/bench/nvlm-small ]; then
        if [ ${#dry[@]} -gt 0 ]; then
            echo "the checkpoint engines/bench/nvlm-small is made first (2.3 GB); without it there is nothing to plan"
            exit
        fi
        nvlm-trt synth engines/bench/nvlm-small --size small >&2
    fi
    defaults=(--baseline bf16 --rounds 2 --repeats 1 --warmup 1 --columns 1)
    defaults+=(--scenario repeat,turns,stall,streams,prefill,decode,vision)
else
    model=nvlm-d-mini served=nvlm-d-mini-int8_wo precisions="${PRECISIONS-fp32 bf16 int8_wo int8 int4_wo}" source=()
    defaults=(--baseline bf16,fp32 --rounds 3)
    task=nvlm_trt/miniature/gate/task.jsonl
    [ ! -f "$task" ] || defaults+=(--task "$task")
fi

engines=()
for precision in $precisions; do
    case $precision in fp32 | int8) vision=$precision ;; *) vision=bf16 ;; esac
    engine=engines/bench/$model-$precision
    sed -e "s/^vision_precision: .*/vision_precision: $vision/" \
        -e "s/^decoder_precision: .*/decoder_precision: $precision/" \
        "build/recipes/$model-cpu.yaml" >"$engine.yaml"
    nvlm-trt build "$engine.yaml" --output "$engine" --until decoder-compile "${source[@]}" "${dry[@]}" >&2
    engines+=("$engine")
done
if [ ${#dry[@]} -gt 0 ]; then
    for engine in "${engines[@]}"; do
        [ -d "$engine" ] && continue
        echo "$engine is built first; what is measured can be told once it is there"
        exit
    done
fi
case " ${engines[*]} " in *"/$served "*) ;; *) served=${engines[0]##*/} ;; esac
[ ${#dry[@]} -gt 0 ] || case " $* " in *grpc* | *http*) # a server reads a model repository, which a whole build would write after its gates
    python - "${engines[@]}" <<'PYTHON'
import sys
from pathlib import Path
from nvlm_trt.engine_files import REPOSITORY, engine_recipe
from nvlm_trt.serving.package import write_repository
for engine in map(Path, sys.argv[1:]):
    write_repository(engine, engine / REPOSITORY, engine_recipe(engine))
PYTHON
    ;;
esac

exec nvlm-trt bench "${engines[@]}" "${defaults[@]}" --served "$served" "$@" # of an option that is given twice the last one holds
