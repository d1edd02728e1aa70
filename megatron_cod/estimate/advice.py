"""What holds a rank's memory, and which flags would make it less: for the rehearsal and for a run that is out of memory."""

from megatron_cod.args import MegatronArgs
from megatron_cod.common.amounts import GIB
from megatron_cod.estimate.memory import Memory

_FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"


def holders(memory: Memory) -> list[tuple[str, float]]:
    """What holds memory, in bytes, the largest first."""
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "activations": memory.activations,
        "the optimizer step's temporary": memory.step,
        "buffers": memory.buffers,
    }
    return sorted(parts.items(), key=lambda part: -part[1])


def largest(memory: Memory, count: int = 3) -> str:
    """The largest holders in words."""
    return ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in holders(memory)[:count] if size)


def _for_activations(args: MegatronArgs) -> list[str]:
    found = []
    if args.tensor_model_parallel_size > 1 and not args.sequence_parallel:
        found.append("--sequence-parallel")
    if args.micro_batch_size > 1:
        found.append(f"a --micro-batch-size below {args.micro_batch_size}")
    if args.recompute_granularity != "full":
        found.append(_FULL)
    return found


def _for_optimizer(args: MegatronArgs) -> list[str]:
    if args.use_distributed_optimizer:
        return ["more data-parallel replicas, which share the optimizer"]
    replicas = args.data_parallel_size * args.context_parallel_size
    return ["--use-distributed-optimizer"] if replicas > 1 else ["--use-distributed-optimizer on more GPUs"]


def _for_weights(args: MegatronArgs) -> list[str]:
    sizes = ["tensor", "pipeline"]
    if args.num_experts and args.expert_model_parallel_size < args.num_experts:
        sizes.insert(0, "expert")
    named = (f"--{size}-model-parallel-size above {getattr(args, f'{size}_model_parallel_size')}" for size in sizes)
    return [f"a {' or '.join(named)}"]


_HELP = {
    "weights": _for_weights,
    "gradients": _for_weights,
    "optimizer": _for_optimizer,
    "the optimizer step's temporary": _for_optimizer,
    "activations": _for_activations,
    "buffers": _for_activations,
}


def advice(args: MegatronArgs, memory: Memory) -> str:
    """Flags that would help with the three largest holders, in their order."""
    found = (flag for name, size in holders(memory)[:3] if size for flag in _HELP[name](args))
    return "; ".join(dict.fromkeys(found))
