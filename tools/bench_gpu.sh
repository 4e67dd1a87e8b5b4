#!/usr/bin/env bash
# The GPU tables of docs/benchmarks.md: the exact architectures with random weights, nothing to download. Each measurement
# without CUDA graphs and with them, beside diffusers' pipeline in the same minute; what matters most comes first.
# It has never run on a GPU: none was at hand when it was written.
#
#     tools/bench_gpu.sh [FOLDER]
#
# FOLDER (default: .) gets gpu-table.md, to be pasted into docs/benchmarks.md, gpu-*.json with all that was measured, and
# gpu-tests.txt: what `pytest -m gpu` said. Ten GB are used where temporaries go.
#
#     PYTHON=python3   which Python; default: the checkout's .venv, else python3. darkroom need not be installed in it
#     LIMIT_S=540      after so many seconds nothing new is begun and what is under way is ended; the table tells
#     DEVICE=cuda:1    which GPU
#
# To try the script itself where there is no GPU: DEVICE=cpu TRIAL=1 does all of it with the bundled model, at 64 pixels.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
[ -x "$python" ] || python=$(command -v "${PYTHON:-python3}")
out=$(cd "${1:-.}" && pwd)
models=$(mktemp -d)
trap 'rm -rf "$models"' EXIT
cd "$out"

export PYTHONPATH=$here/daemon${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export DARKROOM_ENGINE__DEVICE=${DEVICE:-cuda} DARKROOM_ENGINE__CACHE_DIR=$out/gpu-cache
limit=${LIMIT_S:-540}
files=()

# Seconds that are left, of which one thing may take so many.
left() {
    local seconds=$((limit - SECONDS))
    echo $((seconds < $1 ? seconds : $1))
}

# What is told, in no more seconds than are left; that it failed ends nothing else.
attempt() {
    local most
    most=$(left "$1")
    shift
    if [ "$most" -le 0 ]; then
        echo "left out: no time is left" >&2
        return 1
    fi
    timeout "$most" "$@" || { echo "failed ($?), or took more than $most seconds" >&2; return 1; }
}

# An architecture's folder, made once.
make_model() {
    if [ -n "${TRIAL:-}" ]; then
        cp -r "$here/daemon/darkroom/seedling" "$models/$1"
    else
        attempt 120 "$python" -m darkroom.engine.architectures "$1" "$models/$1"
    fi
}

# Its name, the model, whether with CUDA graphs, rounds, pixels a side, steps, and pictures a job, which may be several.
measure() {
    local name=$1 model=$2 graphs=$3 rounds=$4 size=$5 steps=$6 batches=()
    shift 6
    if [ -n "${TRIAL:-}" ]; then
        rounds=1 size=64 steps=2
    fi
    for batch in "$@"; do
        batches+=(--batch "$batch")
    done
    echo "== $name"
    files+=("gpu-$name.json")
    if DARKROOM_ENGINE__CUDA_GRAPHS=$graphs attempt 180 "$python" -m darkroom bench engine --json --dir "$models" \
        --config "$models/config.toml" --model "$model" --rounds "$rounds" --size "$size" --steps "$steps" \
        "${batches[@]}" >"gpu-$name.txt" 2>&1; then
        tail -n 1 "gpu-$name.txt" >"gpu-$name.json"
    else
        rm -f "gpu-$name.json"
        tail -n 5 "gpu-$name.txt"
    fi
    table || true
}

# All that was measured so far, so that it is there whatever happens to the rest.
table() {
    {
        if [ -s gpu-card.txt ]; then
            cat gpu-card.txt
            echo
        fi
        "$python" "$here/tools/gpu_figures.py" pictures "${files[@]}"
        if [ -s gpu-formats.md ]; then
            echo
            cat gpu-formats.md
        fi
    } >gpu-table.md
}

rm -f gpu-*.json gpu-card.txt gpu-formats.md
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader >gpu-card.txt 2>&1 || rm -f gpu-card.txt
printf '[models.%s]\npath = "%s"\n' sd15 "$models/sd15" sdxl "$models/sdxl" >"$models/config.toml"

make_model sd15 || true
measure sd15 sd15 false 2 512 50 1 8
measure sd15-graphs sd15 true 2 512 50 1
echo "== tests"
(cd "$here" && attempt 150 "$python" -m pytest -q -m gpu -W default -p no:cacheprovider tests/test_gpu_*.py) \
    >gpu-tests.txt 2>&1 || true
tail -n 1 gpu-tests.txt
make_model sdxl || true
measure sdxl sdxl false 2 1024 30 1
measure sdxl-graphs sdxl true 2 1024 30 1
echo "== memory formats"
attempt 60 "$python" "$here/tools/gpu_figures.py" formats >gpu-formats.md || true
measure sdxl-batch sdxl false 1 1024 20 8
measure sd15-768-graphs sd15 true 2 768 50 1
cat gpu-table.md
