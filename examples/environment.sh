# shellcheck shell=bash
# What every launch needs, in one place (docs/launching.md explains each). Sourced by the scripts beside it.
# Everything may be set before: what is set already stays.

# make's environment where it is there, else the one that is active.
[ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=$PWD/.venv/bin/python || PYTHON=python; }
export PYTHON

# Restarts within torchrun fail at random while an attempt finds the addresses of the one before.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Seconds that a save may take after a signal, before torchrun kills its ranks.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"
# One thread a process: the GPUs compute, and on CPUs the processes are the parallelism.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# CUDA_DEVICE_MAX_CONNECTIONS is left to the program, which knows the layout: 1 under tensor and context parallelism before
# Blackwell, more under FSDP. What is set here wins.
# The network between the nodes. INTERFACE=ib0 or eth0 where the default route is not it.
if [ -n "${INTERFACE:-}" ]; then
    export NCCL_SOCKET_IFNAME="$INTERFACE" GLOO_SOCKET_IFNAME="$INTERFACE"
fi
# A dead peer ends the job with a message instead of hanging it.
export TORCH_NCCL_ASYNC_ERROR_HANDLING="${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}"

# shellcheck source=examples/functions.sh
. "$(dirname "${BASH_SOURCE[0]}")/functions.sh"
