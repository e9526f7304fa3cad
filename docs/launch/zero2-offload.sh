#!/usr/bin/env bash
# The same under the paper's setting, DeepSpeed ZeRO-2 with the optimizer on the CPU: pip install 'phystrainers[deepspeed]'
set -euo pipefail
GPUS=${GPUS:-8} DATA=${DATA:-/data/wisa} RUNS=${RUNS:-runs}
recipe=(--config wan2.1-1.3b --set accumulate=1 --set "data.source=$DATA/train.json" --set "data.root=$DATA")
launch=$(python -c 'from pila.config import RECIPES; print(RECIPES / "launch")')

torchrun --standalone --nproc-per-node "$GPUS" -m pila.cli cache "${recipe[@]}" --cache "$RUNS/cache"

exec accelerate launch --config_file "$launch/zero2-offload.yaml" --deepspeed_config_file "$launch/zero2-offload.json" \
    --num_processes "$GPUS" -m pila.cli train "${recipe[@]}" --cache "$RUNS/cache" --out "$RUNS/pila" --resume
