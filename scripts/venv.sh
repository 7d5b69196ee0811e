# Sourced by the other scripts: makes .venv with the extras asked for, once, and puts it first on PATH.
# Usage: . scripts/venv.sh EXTRAS   (such as cpu, or cpu,dev; "image" in NVIDIA's image, whose libraries are used)

prepare_venv() {
    local extras=$1 python=${PYTHON:-python3} stamp
    local -a options=()
    [ "$extras" = image ] && options=(--system-site-packages)
    stamp=.venv/installed-$(cat pyproject.toml hatch_build.py nvlm_trt/model/_resize.c | sha256sum | cut -c1-16)-${extras//,/-}
    [ -f "$stamp" ] && return
    .venv/bin/python -m pip --version >/dev/null 2>&1 || { # none, or one whose making was interrupted before pip came
        "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || {
            echo "nvlm-trt needs Python 3.11 or 3.12 (seen: $("$python" --version)); name one: PYTHON=python3.12" >&2
            return 2
        }
        "$python" -m venv --clear "${options[@]}" .venv
    }
    echo "Installing nvlm-trt [$extras] into .venv (once; a few minutes) ..." >&2
    if [ "$extras" = image ]; then
        build/docker/add_libraries.sh "$PWD/.venv/bin/python"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
        .venv/bin/python build/docker/check_requirements.py nvlm-trt
    else
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
    fi
    touch "$stamp"
}

prepare_venv "$1"
export PATH="$PWD/.venv/bin:$PATH"
