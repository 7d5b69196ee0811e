#!/usr/bin/env bash
# Memory and speed of the streaming stages at the true widths of NVLM-D-72B, beside `cp` of the same bytes.
#
#   scripts/bench_streaming.sh [FOLDER] [LAYERS ...]     defaults: that of temporary files, 2 4
#
# Makes a random checkpoint of so many vision and decoder layers (4: 16 GB), copies it with cp, exports its vision part
# and converts its decoder, in bf16 (tp 1) and quantised to fp8 (tp 4), each in a process of its own; what the fp8
# conversion has written is copied with cp as well. Prints the machine's load and a table. All of it is written into a
# new folder inside FOLDER, which is removed at the end. Needs four times the checkpoint's bytes free. The machine should
# have nothing else to do.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh cpu
given=${1:-${TMPDIR:-/tmp}}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- 2 4

mkdir -p "$given"
folder=$(mktemp -d -p "$given")
trap 'rm -rf "$folder"' EXIT
printf 'target: gpu\nvision_precision: bf16\ndecoder_precision: bf16\n' >"$folder/bf16.yaml"
# Calibration decides the scales and no speed: one short sample does.
printf 'target: gpu\ntp: 4\ndecoder_precision: fp8\ncalibration: {count: 1, max_tokens: 64}\n' >"$folder/fp8.yaml"

copy() { # prints the seconds that a copy of folder $1 takes, its bytes on the disk
    local begun=$EPOCHREALTIME
    cp -r "$1" "$folder/copy"
    sync -f "$folder/copy"
    local ended=$EPOCHREALTIME
    rm -rf "$folder/copy"
    python -c 'import sys; print(float(sys.argv[2]) - float(sys.argv[1]))' "$begun" "$ended"
}

build() { # the stages of recipe $1 up to $2
    nvlm-trt build "$folder/$1.yaml" --checkpoint "$folder/checkpoint" --output "$folder/$1" --until "$2" --quiet
}

for layers; do
    nvlm-trt synth "$folder/checkpoint" --like 72b --layers "$layers"
    sync
    echo "$layers layers; load before: $(cut -d' ' -f1-3 /proc/loadavg)"
    source_seconds=$(copy "$folder/checkpoint")
    build bf16 decoder-convert >/dev/null
    rm -r "$folder/bf16/decoder"
    build fp8 decoder-convert >/dev/null
    fp8_seconds=$(copy "$folder/fp8/decoder/checkpoint")
    python - "$folder" "$source_seconds" "$fp8_seconds" <<'PYTHON'
import json, sys
from pathlib import Path
folder = Path(sys.argv[1])
def copied(what, path, seconds):
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"  {what:24} {size / 1e9:5.1f} GB copied,  {seconds:4.0f} s, {size / seconds / 1e9:.2f} GB/s")
copied("cp of the checkpoint", folder / "checkpoint", float(sys.argv[2]))
for recipe, stages in (("bf16", ("vision-export", "decoder-convert")), ("fp8", ("decoder-convert",))):
    records = json.loads((folder / recipe / "manifest.json").read_text())["stages"]
    for name in stages:
        record = records[name]
        size = sum(output["size"] for output in record["outputs"])
        print(f"  {name + ', ' + recipe:24} {size / 1e9:5.1f} GB written, {record['seconds']:4.0f} s, "
              f"{size / record['seconds'] / 1e9:.2f} GB/s, peak {record['peak_memory_bytes'] / 2**20:.0f} MiB")
copied("cp of the fp8 ranks", folder / "fp8" / "decoder" / "checkpoint", float(sys.argv[3]))
PYTHON
    echo "  load after: $(cut -d' ' -f1-3 /proc/loadavg)"
    rm -rf "$folder"/{checkpoint,bf16,fp8}
done
