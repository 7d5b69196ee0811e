#!/usr/bin/env bash
# Memory and speed of the streaming stages at the true widths of NVLM-D-72B, beside `cp` of the same bytes.
#
#   scripts/bench_streaming.sh [FOLDER] [LAYERS ...]     defaults: a temporary folder, 2 4
#
# Makes a random checkpoint of so many vision and decoder layers (4: 16 GB), copies it with cp, exports its vision part
# and converts its decoder, each in a process of its own, and prints a table. Needs twice the checkpoint's bytes free.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh cpu
folder=${1:-$(mktemp -d)}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- 2 4

mkdir -p "$folder"
trap 'rm -rf "$folder/checkpoint" "$folder/copy" "$folder/engine"' EXIT
printf 'target: gpu\nvision_precision: bf16\ndecoder_precision: bf16\n' >"$folder/streaming.yaml"

for layers; do
    nvlm-trt synth "$folder/checkpoint" --like 72b --layers "$layers"
    sync
    begun=$EPOCHREALTIME
    cp -r "$folder/checkpoint" "$folder/copy"
    sync -f "$folder/copy"
    ended=$EPOCHREALTIME
    rm -rf "$folder/copy"
    for stage in vision-export decoder-convert; do
        nvlm-trt build "$folder/streaming.yaml" --checkpoint "$folder/checkpoint" --output "$folder/engine" \
            --until "$stage" --quiet
    done
    python - "$folder" "$layers" "$begun" "$ended" <<'PYTHON'
import json, sys
from pathlib import Path
folder, layers, copied = Path(sys.argv[1]), sys.argv[2], float(sys.argv[4]) - float(sys.argv[3])
source = sum(file.stat().st_size for file in (folder / "checkpoint").iterdir())
print(f"{layers} layers: cp + sync {source / 1e9:.1f} GB, {copied:.0f} s, {source / copied / 1e9:.2f} GB/s")
stages = json.loads((folder / "engine" / "manifest.json").read_text())["stages"]
for name, record in sorted(stages.items()):
    size = sum(output["size"] for output in record["outputs"])
    print(f"  {name:16} {size / 1e9:5.1f} GB written, {record['seconds']:4.0f} s, "
          f"{size / record['seconds'] / 1e9:.2f} GB/s, peak {record['peak_memory_bytes'] / 2**20:.0f} MiB")
PYTHON
    rm -rf "$folder/checkpoint" "$folder/engine"
done
