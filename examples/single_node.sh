#!/usr/bin/env bash
# Train on this machine: its GPUs, or CPU processes where it has none. Flags after the script's name go to the training.
#   examples/single_node.sh --pipeline-model-parallel-size 2
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- the five things to change ----
RECIPE=${RECIPE:-debug}
TRAIN=${TRAIN:-runs/quickstart/data/sotu_train_text_document} # by megatron-cod preprocess (quickstart makes this)
VALID=${VALID:-runs/quickstart/data/sotu_valid_text_document}
SAVE=${SAVE:-runs/single_node}
PROCESSES=${PROCESSES:-auto}
# ------------------------------------

. examples/environment.sh
[ "$PROCESSES" = auto ] && PROCESSES=$(processes_here)

# --load the same directory: the first time it is empty, later the run goes on where it was.
exec "$PYTHON" -m megatron_cod.training.torchrun --standalone --nproc-per-node "$PROCESSES" --max-restarts "${RESTARTS:-3}" \
    -m megatron_cod.training.pretrain --recipe "$RECIPE" --train-data-path "$TRAIN" --valid-data-path "$VALID" \
    --save "$SAVE" --load "$SAVE" --save-interval "${SAVE_INTERVAL:-1000}" "$@"
