# shellcheck shell=bash
# How many processes; and of Slurm: where nodes meet, the name and the end of the job. Sourced by environment.sh.

# GPUs that processes here see; 2 CPU processes where there is none. What nvidia-smi says when it fails is no GPU, and of a
# GPU in MIG instances a process sees one.
processes_here() {
    local listed gpus visible=0 one
    listed=$(nvidia-smi -L 2>/dev/null) || listed=
    gpus=$(grep -c '^GPU [0-9]' <<<"$listed") || gpus=0
    if [ "$gpus" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        for one in ${CUDA_VISIBLE_DEVICES//,/ }; do # numbers or UUIDs, which may be cut; CUDA stops at the first that is none
            case $one in
            GPU-* | MIG-*) grep -qF "UUID: $one" <<<"$listed" || break ;;
            *[!0-9]*) break ;;
            *) [ "$one" -lt "$gpus" ] || break ;;
            esac
            visible=$((visible + 1))
        done
        gpus=$visible
    fi
    ! grep -q '^ *MIG ' <<<"$listed" || gpus=$((gpus > 1 ? 1 : gpus))
    [ "$gpus" -gt 0 ] && echo "$gpus" || echo 2
}

# MASTER_ADDR and MASTER_PORT of a Slurm job, in its batch script, which runs on the first node.
slurm_rendezvous() {
    # A node's name in Slurm need not be a name in the network.
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_ADDR=$(scontrol show node -o "$first" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    # The job's number leads to a port of its own; where somebody has it, the next free one.
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
    while (exec 3<>"/dev/tcp/$MASTER_ADDR/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done
    export MASTER_ADDR MASTER_PORT
}

# The name by which Slurm knows this job alone: one task of an array has the array's number, which names all of them.
slurm_job() {
    if [ -n "${SLURM_ARRAY_JOB_ID:-}" ] && [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
        echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    else
        echo "$SLURM_JOB_ID"
    fi
}

# The end of a Slurm job in seconds since 1970, for --time-limit auto: not every Slurm tells it.
slurm_end() {
    # Of several lines the first end counts.
    end=$(squeue --noheader --jobs="$(slurm_job)" --format=%e | sort | head -n 1) || end=
    if [ -z "${SLURM_JOB_END_TIME:-}" ] && [[ $end == ????-??-??T* ]]; then
        SLURM_JOB_END_TIME=$(date -d "$end" +%s)
        export SLURM_JOB_END_TIME
    fi
}
