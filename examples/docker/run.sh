#!/usr/bin/env bash
# Train in a container on this machine: GPUs with the image of Dockerfile, CPUs with that of Dockerfile.cpu.
#   docker build -t megatron_cod . && examples/docker/run.sh --tensor-model-parallel-size 2
#   docker build -t megatron_cod:cpu -f Dockerfile.cpu . && IMAGE=megatron_cod:cpu GPUS= examples/docker/run.sh
set -euo pipefail

# ---- the five things to change ----
IMAGE=${IMAGE:-megatron_cod}
GPUS=${GPUS-all}             # empty: none
RUNS=${RUNS:-$PWD/runs}      # checkpoints, kept outside; data may lie in it too
RECIPE=${RECIPE:-recipes/debug.yaml}
TRAIN=${TRAIN:-}             # path inside the container; empty: random tokens
# ------------------------------------

mkdir -p "$RUNS"
gpu=()
[ -z "$GPUS" ] || gpu=(--gpus "$GPUS")
data=(--mock-data)
[ -z "$TRAIN" ] || data=(--data-path "$TRAIN")
# Shared memory for the workers that load data; the user who runs this owns what is written.
exec docker run --rm "${gpu[@]}" --shm-size 8g --ulimit memlock=-1 --user "$(id -u):$(id -g)" \
    -v "$RUNS:/workspace/runs" "$IMAGE" python -m torch.distributed.run --standalone \
    --nproc-per-node "${PROCESSES:-2}" -m megatron_cod.training.pretrain --recipe "$RECIPE" "${data[@]}" \
    --save runs/docker --load runs/docker --save-interval "${SAVE_INTERVAL:-1000}" "$@"
