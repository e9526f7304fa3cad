#!/usr/bin/env bash
# PILA on two machines: start it on both with the same HEAD, the name of one of them. DATA and RUNS lie on a file system
# that both see. A machine that is restarted joins again: the other's processes start anew from the last checkpoint.
set -euo pipefail
: "${HEAD:?set HEAD to the name of one of the machines}"
GPUS=${GPUS:-8} DATA=${DATA:-/shared/wisa} RUNS=${RUNS:-/shared/runs}
recipe=(--config wan2.1-1.3b --set accumulate=1 --set "data.source=$DATA/train.json" --set "data.root=$DATA")
machines=(--nnodes 2 --nproc-per-node "$GPUS" --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" --max-restarts 3)

torchrun "${machines[@]}" --rdzv-id pila-cache -m pila.cli cache "${recipe[@]}" --cache "$RUNS/cache"

exec torchrun "${machines[@]}" --rdzv-id pila-train --shutdown-timeout 300 \
    -m pila.cli train "${recipe[@]}" --cache "$RUNS/cache" --out "$RUNS/pila" --resume
