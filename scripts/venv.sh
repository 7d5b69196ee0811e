# Sourced by the other scripts: makes .venv with the extras asked for, once, and puts it first on PATH.
# Usage: . scripts/venv.sh EXTRAS   (such as cpu, or cpu,dev; "none" installs nothing but the project itself)

prepare_venv() {
    local extras=$1 python=${PYTHON:-python3} stamp
    local -a options=()
    # On the pinned GPU image TensorRT, TensorRT-LLM and torch are the image's own.
    [ "$extras" = none ] && options=(--system-site-packages)
    stamp=.venv/installed-$(cat pyproject.toml hatch_build.py nvlm_trt/model/_resize.c | sha256sum | cut -c1-16)-${extras//,/-}
    [ -f "$stamp" ] && return
    [ -x .venv/bin/python ] || "$python" -m venv "${options[@]}" .venv
    echo "Installing nvlm-trt [$extras] into .venv (once; a few minutes) ..." >&2
    if [ "$extras" = none ]; then
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
    else
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
    fi
    touch "$stamp"
}

prepare_venv "$1"
export PATH="$PWD/.venv/bin:$PATH"
