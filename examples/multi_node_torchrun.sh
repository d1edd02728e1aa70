#!/usr/bin/env bash
# Train on several machines without a scheduler. Run the same line on every one of them, within RENDEZVOUS_TIMEOUT:
#   HEAD=node1 NODES=2 examples/multi_node_torchrun.sh --pipeline-model-parallel-size 2
# A process that dies takes its node through a restart, and all resume from the newest checkpoint; a node may go and come
# back. HEAD holds the rendezvous: when it goes, all end, and the line is to be run again.
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- the five things to change ----
HEAD=${HEAD:?the name or address of one of the machines, the same on all}
NODES=${NODES:?how many machines}
RECIPE=${RECIPE:-debug}
DATA=${DATA:-runs/quickstart/data/sotu} # DATA_train_text_document and DATA_valid_text_document, on every machine
SAVE=${SAVE:-runs/multi_node}           # a directory that all machines share
# ------------------------------------

. examples/environment.sh
PROCESSES=${PROCESSES:-$(processes_here)}
address=() # of this machine for the others, where its host name does not lead them to it
[ -z "${ADDRESS:-}" ] || address=(--local-addr "$ADDRESS")

# RENDEZVOUS_TIMEOUT: seconds that HEAD is waited for, and any machine that is not there, at the start and after a failure.
# TIMEOUT_MINUTES: how long a rank waits for an answer of another before the attempt counts as failed.
exec "$PYTHON" -m megatron_cod.training.torchrun --nnodes "$NODES" --nproc-per-node "$PROCESSES" "${address[@]}" \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29400}" --rdzv-id "${RUN_ID:-megatron_cod}" \
    --rdzv-conf "join_timeout=${RENDEZVOUS_TIMEOUT:-600}" --max-restarts "${RESTARTS:-10}" \
    -m megatron_cod.training.pretrain --recipe "$RECIPE" \
    --train-data-path "${DATA}_train_text_document" --valid-data-path "${DATA}_valid_text_document" \
    --save "$SAVE" --load "$SAVE" --save-interval "${SAVE_INTERVAL:-1000}" \
    --distributed-timeout-minutes "${TIMEOUT_MINUTES:-10}" "$@"
