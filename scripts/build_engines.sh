#!/usr/bin/env bash
# From a checkpoint to an answering Triton server.
#
#   scripts/build_engines.sh                                       the default recipe, on any laptop
#   scripts/build_engines.sh RECIPE --checkpoint DIR [OPTION ...]  another recipe, by path or name; options of `nvlm-trt build`
#
# Makes .venv and installs on the first run, builds engines/<recipe>/, starts its server, asks about a picture,
# prints the answer and where everything lies, and stops the server. A killed run resumes where it was.
set -euo pipefail
cd "$(dirname "$0")/.."

recipe=build/recipes/nvlm-d-mini-cpu.yaml
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    recipe=$1
    shift
fi

named=build/recipes/$recipe.yaml
[ -e "$recipe" ] || [ ! -f "$named" ] || recipe=$named

target=cpu extras=cpu
grep -Eq "^target: *[\"']?gpu" "$recipe" 2>/dev/null && target=gpu
# In NVIDIA's image; elsewhere a recipe for GPUs can be planned and taken up to its checkpoint.
[ $target = cpu ] || ! "${PYTHON:-python3}" -c "import tensorrt_llm" 2>/dev/null || extras=image
. scripts/venv.sh "$extras"

for word; do # a plan, a part of a build, facts for a program: there is nothing to ask
    case $word in --dry-run | --until | --until=* | --json | --help) exec nvlm-trt build "$recipe" "$@" ;; esac
done
[ $target = cpu ] || exec nvlm-trt build "$recipe" "$@" # nor where engines are for another machine

engine=$(nvlm-trt build "$recipe" "$@")
member() { python -c 'import json, sys; print(json.loads(sys.stdin.readline())[sys.argv[1]])' "$1"; }

echo "Starting the server of $engine ..."
log=$(mktemp)
coproc SERVER { exec nvlm-trt serve "$engine" --http-port 0 --grpc-port 0 --metrics-port 0 --json 2>"$log"; }
server=$SERVER_PID
stop() {
    local status=$?
    kill -TERM "$server" 2>/dev/null; wait "$server" 2>/dev/null || true
    [ "$status" = 0 ] || { echo "The server's log:"; cat "$log"; } >&2
    rm -f "$log"
}
trap stop EXIT
read -r ready <&"${SERVER[0]}"
[[ $ready == *'"ready"'* ]] || exit 1
url=$(member grpc <<<"$ready")

picture=examples/cup.png
question="What is the tiny number?"
echo "Picture:  $picture"
echo "Question: $question"
printf 'Answer:   '
nvlm-trt chat --url "$url" --image "$picture" --prompt "$question" --max-tokens 32

echo
echo "Everything lies in $engine (manifest.json says what was built; verify.json how exact it is)."
echo "Serve it with: scripts/serve.sh $engine"
