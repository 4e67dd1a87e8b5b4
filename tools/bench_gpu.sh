#!/usr/bin/env bash
# The GPU table of docs/benchmarks.md: the exact architectures with random weights, nothing to download. Each measurement
# without CUDA graphs and with them, beside diffusers' pipeline in the same minute.
# Meant to take less than eight minutes. It has never run on a GPU: none was at hand when it was written.
#
#     tools/bench_gpu.sh [FOLDER]      a folder with 8 GB free; the objects go to FOLDER/gpu-*.json, default: .
#
# To try the script itself where there is no GPU: DEVICE=cpu TRIAL=1 measures nothing but the bundled model, at 64 pixels.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
out=$(cd "${1:-.}" && pwd)
cd "$out"

export DARKROOM_ENGINE__DEVICE=${DEVICE:-cuda} DARKROOM_ENGINE__CACHE_DIR=$out/gpu-cache
if [ "$DARKROOM_ENGINE__DEVICE" != cpu ]; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee gpu-card.txt
fi

# Its name, whether with CUDA graphs, and what `darkroom bench engine` is told. One that fails does not end the others.
measure() {
    local name=$1 graphs=$2
    shift 2
    [ "$graphs" = false ] || name=$name-graphs
    echo "== $name"
    if ! DARKROOM_ENGINE__CUDA_GRAPHS=$graphs timeout 180 "$python" -m darkroom bench engine --dir "$out" --json "$@" \
        | tail -n 1 >"gpu-$name.json"; then
        echo "failed, or took more than three minutes"
        return
    fi
    "$python" - "gpu-$name.json" <<'PYTHON'
import json, sys

for row in json.load(open(sys.argv[1]))["cases"]:
    each = row["ours_s"]["median"] / row["batch"]
    print(f"{row['size']}², {row['steps']} steps, {row['batch']} a job: {each:.3f} s a picture, {row['pipeline_ratio']}"
          f" times diffusers' pipeline, {row['tutorial_ratio']} times the tutorial's, {row['efficiency_ratio']} of mm")
PYTHON
}

if [ -n "${TRIAL:-}" ]; then
    for graphs in false true; do
        measure trial $graphs --size 64 --steps 2 --rounds 1
    done
    exit
fi
for graphs in false true; do
    measure sd15 $graphs --arch sd15 --size 512 --steps 50 --batch 1 --batch 8 --rounds 2
    measure sdxl $graphs --arch sdxl --size 1024 --steps 30 --rounds 2
done
measure sd15-768 true --arch sd15 --size 768 --steps 50 --rounds 2
measure sdxl-batch false --arch sdxl --size 1024 --steps 20 --batch 8 --rounds 1
