"""Every flag of Megatron's group *checkpointing*, and how a run that gives it saves and resumes.

A flag that Megatron adds fails ``tests/training/flags/test_save_checks.py`` until it has a row here.
"""

from dataclasses import dataclass

DISTRIBUTED = ("--use-distributed-optimizer", "--micro-batch-size", "1")
"""For two ranks, each a replica."""
FSDP2 = ("--use-torch-fsdp2", "--micro-batch-size", "1")
DCP = (*FSDP2, "--ckpt-format", "torch_dcp")


@dataclass(frozen=True)
class Case:
    """A run on ``world`` ranks that saves with these flags, and resumes with them and with ``resumed``."""

    flags: tuple[str, ...] = ()
    resumed: tuple[str, ...] = ()
    world: int = 1
    refused: tuple[str, ...] = ()
    """Words of the error where the run is refused before anything starts; empty: it resumes to the bit."""


def _distributed(*flags: str) -> Case:
    return Case((*DISTRIBUTED, *flags), world=2)


CASES = {
    "plain": Case(),
    "distributed": _distributed(),
    "fsdp2": Case(DCP, world=2),
    "fsdp2 bf16": Case((*DCP, "--bf16"), world=2),
    "worker alone": Case(("--use-persistent-ckpt-worker",)),
    "constant structure": _distributed("--ckpt-assume-constant-structure"),
    "parallel load": _distributed("--ckpt-fully-parallel-load"),
    "parallel load rounds": _distributed(
        "--ckpt-fully-parallel-load", "--ckpt-fully-parallel-load-exchange-algo", "gather_rounds"
    ),
    "parallel load object": _distributed(
        "--ckpt-fully-parallel-load", "--ckpt-fully-parallel-load-exchange-algo", "gather_object"
    ),
    "other groups": _distributed(
        *("--ckpt-fully-parallel-load", "--ckpt-fully-parallel-load-process-group", "ep_dp"),
        *("--ckpt-fully-parallel-save-process-group", "ep_dp"),
    ),
    "no parallel save": _distributed("--no-ckpt-fully-parallel-save"),
    "memory efficient": _distributed("--distrib-optim-fully-reshardable-mem-efficient"),
    "before 0.14": _distributed("--dist-ckpt-save-pre-mcore-014"),
    "deprecated names": Case(("--use-dist-ckpt", "--dist-ckpt-format", "torch_dist")),
    "verified": Case(("--verify-integrity",)),
    "no random states": Case(("--no-save-rng",)),
    "detected": Case(resumed=("--auto-detect-ckpt-format",)),
    "the checkpoint's arguments": Case(
        resumed=("--use-checkpoint-args", "--use-mp-args-from-checkpoint-args", "--exit-on-missing-checkpoint")
    ),
    "not validated": Case(resumed=("--no-ckpt-load-validate-sharding-integrity",)),
    "step named": Case(resumed=("--override-ckpt-iteration", "2", "--ckpt-step", "2")),
    "parameters": Case(("--save-params-interval", "2")),
    "weight gradients": Case(("--save-wgrads-interval", "2")),
    "tokens of experts": Case(("--save-tokens-per-expert-interval", "2")),
    "activations": Case(("--save-activations-interval", "2"), refused=("--save-activations-interval",)),
    "activation gradients": Case(("--save-dgrads-interval", "2"), refused=("--save-dgrads-interval",)),
    "strict": Case(("--dist-ckpt-strictness", "raise_all"), refused=("--dist-ckpt-strictness raise_all",)),
    "fsdp2 torch_dist": Case(FSDP2, world=2, refused=("--use-torch-fsdp2", "--ckpt-format torch_dcp")),
    "fsdp2 sgd": Case((*DCP, "--optimizer", "sgd"), world=2, refused=("--optimizer sgd", "--no-save-optim")),
    "sgd": Case(("--optimizer", "sgd"), refused=("--optimizer sgd", "--no-save-optim")),
    "megatron fsdp": Case(
        ("--use-megatron-fsdp", "--ckpt-format", "fsdp_dtensor", "--use-distributed-optimizer"),
        refused=("--use-megatron-fsdp",),  # for --swiglu, or before that on a machine without einops
    ),
    "torch": Case(("--ckpt-format", "torch"), refused=("--ckpt-format torch",)),
    "torch_dcp alone": Case(("--ckpt-format", "torch_dcp"), refused=("--ckpt-format torch_dcp", "--use-torch-fsdp2")),
    "fsdp_dtensor alone": Case(
        ("--ckpt-format", "fsdp_dtensor"), refused=("--ckpt-format fsdp_dtensor", "--use-megatron-fsdp")
    ),
    "asynchronous": Case(("--async-save",), refused=("--async-save",)),
    "asynchronous worker": Case(
        ("--async-save", "--use-persistent-ckpt-worker", "--async-strategy", "mcore"), refused=("--async-save",)
    ),
    "local": Case(("--non-persistent-ckpt-type", "local"), refused=("--non-persistent-ckpt-type",)),
    "global": Case(
        ("--non-persistent-save-interval", "1", "--non-persistent-ckpt-type", "global"),
        refused=("--non-persistent-save-interval", "--keep-last-checkpoints"),
    ),
}

ELSEWHERE = {
    **dict.fromkeys(("save", "save-interval", "load"), "every case"),
    **dict.fromkeys(("ckpt-fully-parallel-save", "dist-ckpt-optim-fully-reshardable", "no-load-rng"), "our defaults"),
    **dict.fromkeys(
        ("finetune", "no-save-optim", "no-load-optim", "load-main-params-from-ckpt"), "tests/cuda/test_resume.py"
    ),
    **dict.fromkeys(("save-retain-interval",), "tests/checkpoint/test_retention.py"),
    **dict.fromkeys(("pretrained-checkpoint", "ckpt-step"), "tests/checkpoint/test_checkpoints.py"),
    **dict.fromkeys(("ckpt-convert-format", "ckpt-convert-save"), "converts, and ends without training"),
    **dict.fromkeys(("ckpt-convert-update-legacy-dist-opt-format",), "of --ckpt-format torch, which is refused"),
    **dict.fromkeys(
        ("non-persistent-global-ckpt-dir", "non-persistent-local-ckpt-dir", "non-persistent-local-ckpt-algo"),
        "does nothing without --non-persistent-ckpt-type, which is refused",
    ),
    **dict.fromkeys(
        ("replication", "replication-jump", "replication-factor"),
        "Megatron takes it with --non-persistent-ckpt-type local alone, which is refused",
    ),
    **dict.fromkeys(
        ("async-strategy", "async-ckpt-cpu-priority", "async-ckpt-io-priority", "async-ckpt-use-cpu-shm"),
        "does nothing without --async-save, which is refused",
    ),
    "dist-ckpt-workers": "does nothing without --async-save, which is refused",
    "no-use-tokenizer-model-from-checkpoint-args": "of --use-checkpoint-args: which tokenizer",
    "no-strict-fsdp-dtensor-load": "of --ckpt-format fsdp_dtensor, which needs --use-megatron-fsdp",
    "no-stream-ckpt-dequant": "of FP8 weights, which Transformer Engine makes",
}
"""Flags that are not in a case, and where they are tried or why they need not be."""
