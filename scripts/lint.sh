#!/usr/bin/env bash
# Lint, formatting and types; changes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh cpu,dev
ruff check .
ruff format --check .
mypy
