"""Training runs on the real Transformer Engine's layers, whose kernels compute nothing: losses are not checked."""

from collections.abc import Callable
from pathlib import Path

from tests.cuda import runs
from tests.cuda.runs import DEBUG, Run

TE = (*DEBUG, "--bf16", "--on-nonfinite", "ignore")
MLA = (
    *("--multi-latent-attention", "--q-lora-rank", "32", "--kv-lora-rank", "16", "--qk-head-dim", "16"),
    *("--qk-pos-emb-head-dim", "16", "--v-head-dim", "16"),
)
MOE = (
    *("--num-experts", "4", "--moe-router-topk", "2", "--moe-token-dispatcher-type", "alltoall"),
    "--moe-grouped-gemm",
)


def train(world: int, folder: Path, *flags: str, before: Callable[[], None] | None = None) -> Run:
    return runs.train(world, folder, *TE, *flags, before=before, timeout=420.0)


def launched(run: Run, *words: str) -> int:
    """Launches of kernels, products and graphs of rank 0 whose name has one of the words."""
    return sum(number for name, number in run.reports[0].items() if name[0] not in "!@" and any(map(name.count, words)))


NORM_KERNELS = ("rmsnorm_fwd", "ln_fwd")
