#!/usr/bin/env bash
# Every fault of docs/reliability.md against a real server: a table with figures, report.md and report.json.
#
#   scripts/chaos.sh [--only N,...] [--duration SECONDS] [--report DIR] [--docs FILE] [--json] [--list]
#
# Exit status: 0 all of them hold, 1 one does not, 2 bad usage.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh cpu,dev
exec python scripts/chaos.py "$@"
