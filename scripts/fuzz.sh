#!/usr/bin/env bash
# Fuzz a part that strangers reach: scripts/fuzz.sh gateway|image|prompt [--time 1h] [--engine DIR] [--out DIR]
#
#   gateway   schemathesis against a real server, through its own OpenAPI document
#   image     atheris on the intake of images
#   prompt    atheris on conversations and the prompts made of them
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh cpu,fuzz

engine=()
case " $* " in
    *" --help "* | *" -h "* | *" --engine"*) ;;
    *" gateway "*)
        engine=(--engine engines/soak)
        nvlm-trt build scripts/soak/recipe.yaml --output engines/soak --quiet >/dev/null
        ;;
esac
exec python -m scripts.fuzz "$@" "${engine[@]}"
