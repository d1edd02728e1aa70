#!/usr/bin/env bash
# Look at the machines before a job. Set what the job's own script sets, and give the same flags:
#   examples/preflight.sh                                    this machine
#   HEAD=node1 NODES=2 examples/preflight.sh [flags]         on every machine, before multi_node_torchrun.sh
#   RECIPE=... DATA=... SAVE=... salloc --nodes=2 ... examples/preflight.sh [flags]    in an allocation, or by sbatch
# One table, machine by machine; exit code 1 when something failed. docs/launching.md says what is looked at.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -f examples/environment.sh ] || cd "$SLURM_SUBMIT_DIR" # sbatch runs a copy that lies elsewhere

# The defaults are those of multi_node_torchrun.sh, and no job's: under Slurm nothing is guessed.
[ -z "${SLURM_JOB_ID:-}" ] || : "${RECIPE:?as in the job}" "${DATA:?as in the job}" "${SAVE:?as in the job}"

# ---- the five things to change ----
HEAD=${HEAD:-localhost} # Slurm knows both of these
NODES=${NODES:-1}
RECIPE=${RECIPE:-debug}
DATA=${DATA:-runs/quickstart/data/sotu} # DATA_train_text_document and DATA_valid_text_document
SAVE=${SAVE:-runs/multi_node}
# ------------------------------------

. examples/environment.sh
look=("$PYTHON" -m megatron_cod.cli.preflight --join-timeout "${JOIN_TIMEOUT:-120}")
launch=(--recipe "$RECIPE" --train-data-path "${DATA}_train_text_document"
    --valid-data-path "${DATA}_valid_text_document" --save "$SAVE" --load "$SAVE"
    --save-interval "${SAVE_INTERVAL:-1000}" "$@")

if [ -n "${SLURM_JOB_ID:-}" ]; then
    slurm_rendezvous
    exec srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${look[@]}" --head "$MASTER_ADDR" --port "$MASTER_PORT" "${launch[@]}"
fi
PROCESSES=${PROCESSES:-$(processes_here)}
started=()
for ((process = 0; process < PROCESSES; process++)); do
    LOCAL_RANK=$process "${look[@]}" --head "$HEAD" --port "${PORT:-29400}" --nodes "$NODES" \
        --processes "$PROCESSES" "${launch[@]}" &
    started+=($!)
done
code=0
for process in "${started[@]}"; do wait "$process" || code=$?; done
exit "$code"
