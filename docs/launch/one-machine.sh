#!/usr/bin/env bash
# PILA on one machine with several GPUs, under DDP. Run it again to go on: neither a cached clip nor a finished step is
# made twice. DATA holds WISA-80K (train.json and its clips), RUNS is for what comes out of it.
set -euo pipefail
GPUS=${GPUS:-8} DATA=${DATA:-/data/wisa} RUNS=${RUNS:-runs}
recipe=(--config wan2.1-1.3b --set accumulate=1 --set "data.source=$DATA/train.json" --set "data.root=$DATA")

# every process encodes its share of the clips
torchrun --standalone --nproc-per-node "$GPUS" -m pila.cli cache "${recipe[@]}" --cache "$RUNS/cache"

# batch is per process: 8 processes x batch 1 x accumulate 1 are the recipe's 1 process x batch 1 x accumulate 8
exec torchrun --standalone --nproc-per-node "$GPUS" --shutdown-timeout 300 \
    -m pila.cli train "${recipe[@]}" --cache "$RUNS/cache" --out "$RUNS/pila" --resume
