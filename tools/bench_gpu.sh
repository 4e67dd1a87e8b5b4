#!/usr/bin/env bash
# The GPU table of docs/benchmarks.md: the exact architectures with random weights, nothing to download.
# Meant to take less than eight minutes. It has never run: no GPU was at hand when it was written.
#
#     tools/bench_gpu.sh [FOLDER]      a folder with 8 GB free; the objects go to FOLDER/gpu-*.json, default: .
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
out=$(cd "${1:-.}" && pwd)
cd "$out"

export DARKROOM_ENGINE__DEVICE=cuda DARKROOM_ENGINE__CACHE_DIR=$out/gpu-cache
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee gpu-card.txt

measure() {
    local name=$1
    shift
    echo "== $name"
    timeout 180 "$python" -m darkroom bench engine --dir "$out" --json "$@" | tail -n 1 >"gpu-$name.json"
    "$python" - "gpu-$name.json" <<'PYTHON'
import json, sys

for row in json.load(open(sys.argv[1]))["cases"]:
    each = row["ours_s"]["median"] / row["batch"]
    print(f"{row['size']}², {row['steps']} steps, {row['batch']} a job: {each:.3f} s a picture, {row['pipeline_ratio']}"
          f" times diffusers' pipeline, {row['tutorial_ratio']} times the tutorial's, {row['efficiency_ratio']} of mm")
PYTHON
}

measure sd15 --arch sd15 --size 512 --steps 50 --batch 1 --batch 8 --rounds 3
measure sd15-768 --arch sd15 --size 768 --steps 50 --rounds 3
measure sdxl --arch sdxl --size 1024 --steps 30 --rounds 3
measure sdxl-batch --arch sdxl --size 1024 --steps 20 --batch 8 --rounds 2
