#!/usr/bin/env bash
# Adds the small libraries that nvlm-trt needs to a Python of NVIDIA's image. Whatever engines depend on stays as the
# image has it (TensorRT, TensorRT-LLM, torch, numpy below 2); others are added, or renewed where they are too old.
#
#   add_libraries.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")"
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
"$1" -m pip list --format=freeze \
    | grep -Ei '^(cuda|flashinfer|mpi4py|numpy|nvidia|onnx|tensorrt|torch|transformers|triton|xgrammar)[a-z0-9_.-]*==' \
    | grep -vi '^tritonclient==' >"$constraints"
"$1" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" --requirement requirements.txt
