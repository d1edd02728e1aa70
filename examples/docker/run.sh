#!/usr/bin/env bash
# examples/single_node.sh in a container on this machine: GPUs with the image of Dockerfile, CPUs with that of Dockerfile.cpu.
# Flags after the script's name go to the training.
#   docker build -t megatron_cod . && examples/docker/run.sh --tensor-model-parallel-size 2
#   docker build -t megatron_cod:cpu -f Dockerfile.cpu . && IMAGE=megatron_cod:cpu GPUS= examples/docker/run.sh
set -euo pipefail

# ---- the five things to change ----
IMAGE=${IMAGE:-megatron_cod}
GPUS=${GPUS-all}        # empty: none
RUNS=${RUNS:-$PWD/runs} # kept outside, runs in the container; data may lie in it too
RECIPE=${RECIPE:-debug}
DATA=${DATA:-runs/quickstart/data/sotu} # in the container: DATA_train_text_document and DATA_valid_text_document
# ------------------------------------

mkdir -p "$RUNS"         # Docker would make it as root
RUNS=$(realpath "$RUNS") # and takes a bare name for a volume of its own
gpus=()
[ -z "$GPUS" ] || gpus=(--gpus "$GPUS" --ulimit memlock=-1 --ulimit stack=67108864)
# Signals reach the training, which saves before it ends; shared memory is for the workers that load data; what is written
# belongs to the user who runs this.
exec docker run --rm --init --stop-timeout 600 "${gpus[@]}" --shm-size 8g --user "$(id -u):$(id -g)" \
    --volume "$RUNS:/workspace/runs" --env RECIPE="$RECIPE" --env SAVE="${SAVE:-runs/docker}" \
    --env TRAIN="${DATA}_train_text_document" --env VALID="${DATA}_valid_text_document" \
    --env PROCESSES="${PROCESSES:-auto}" --env SAVE_INTERVAL="${SAVE_INTERVAL:-1000}" --env RESTARTS="${RESTARTS:-3}" \
    "$IMAGE" examples/single_node.sh "$@"
