#!/usr/bin/env bash
# The tests, as CI runs them: scripts/test.sh [PYTEST OPTION ...]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh cpu,dev
exec python -m pytest -q "$@"
