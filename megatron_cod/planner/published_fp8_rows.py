"""Published runs in FP8: nothing is fitted to them.

Tokens/s of a GPU from NVIDIA's tables; sizes that these do not state are those of the models (Nemotron: NeMo's
``nemotron.py``). Recipes of 2024 scale by
past maxima (``delayed``), those of 2025 and 2026 by the present one (``tensorwise``) or by blocks (``mxfp8``).
"""

from megatron_cod.planner.published_rows import (
    GPT_175B_SIZES,
    LLAMA_3,
    LLAMA_BLOCKS,
    NEMOTRON_BLOCKS,
    OVERLAPS,
    SP,
    PublishedRow,
    layout,
    sizes,
)

_2407 = "github.com/NVIDIA/NeMo, docs/source/performance/performance_summary.md, commit 070a0bb, container 24.07"
_BRIDGE = "github.com/NVIDIA-NeMo/Megatron-Bridge, docs/performance-summary-archive.md, commit 0a25f91, container"


def _row(model: str, gpus: int, flags: str, batch: int, speed: float, recipe: str, source: str) -> PublishedRow:
    """speed: tokens/s of a GPU. flags: with the sequence length as their last word."""
    length = int(flags.split()[-1])
    kernels = {"fp8": "hybrid", "fp8_recipe": recipe} | ({"tp_comm_overlap": True} if SP in flags else {})
    return PublishedRow(
        model,
        "b200" if "B200" in source else "h100",
        gpus,
        f"{flags} --max-position-embeddings {length} {OVERLAPS} --global-batch-size {batch}",
        source,
        seconds=batch * length / gpus / speed,
        kernels=kernels,
        note="FP8",
    )


def _gpt(model: str, gpus: int, shape: str, micro: int, batch: int, speed: float) -> PublishedRow:
    flags = f"--bf16 --padded-vocab-size 51200 {shape} --micro-batch-size {micro} --seq-length 2048"
    return _row(model, gpus, flags, batch, speed, "delayed", _2407)


def _llama_2(model: str, gpus: int, shape: str, groups: int, speed: float) -> PublishedRow:
    flags = f"{LLAMA_BLOCKS} --padded-vocab-size 32000 --num-query-groups {groups} {shape} --micro-batch-size 1"
    return _row(model, gpus, f"{flags} --seq-length 4096", 128, speed, "delayed", _2407)


def _nemotron(
    model: str, gpus: int, shape: str, micro: int, batch: int, speed: float, blocks: str = NEMOTRON_BLOCKS
) -> PublishedRow:
    flags = f"{blocks} {shape} {SP} --micro-batch-size {micro} --seq-length 4096"
    return _row(model, gpus, flags, batch, speed, "delayed", _2407)


def _llama_3(
    model: str, gpus: int, shape: str, batch: int, speed: float, source: str, recipe: str = "tensorwise", micro: int = 1
) -> PublishedRow:
    flags = f"{LLAMA_3} {shape} --micro-batch-size {micro} --seq-length 8192"
    return _row(model, gpus, flags, batch, speed, recipe, source)


_8B = sizes(32, 4096, 32, 14336)
_70B = sizes(80, 8192, 64, 28672)
_405B = (
    f"{sizes(126, 16384, 128, 53248)} {SP} --account-for-embedding-in-pipeline-split "
    "--account-for-loss-in-pipeline-split"
)
_NO_GROUPS = NEMOTRON_BLOCKS.replace("--group-query-attention --num-query-groups 8", "")

FP8_ROWS = (
    _gpt("GPT-3 5B", 64, f"{sizes(24, 4096, 32, 16384)} {layout(1)}", 4, 2048, 22521),
    _gpt("GPT-3 20B", 64, f"{sizes(44, 6144, 48, 24576)} {layout(2)} {SP}", 2, 256, 5851),
    _gpt("GPT-3 175B", 128, f"{GPT_175B_SIZES} {layout(4, 8, 6)} {SP}", 1, 256, 726),
    _gpt("GPT-3 175B", 512, f"{GPT_175B_SIZES} {layout(4, 8, 6)} {SP}", 2, 2048, 782),
    _llama_2("Llama 2 7B", 8, f"{sizes(32, 4096, 32, 11008)} {layout(1)}", 32, 16847),
    _llama_2("Llama 2 13B", 16, f"{sizes(40, 5120, 40, 13824)} {layout(1, 4, 10)}", 40, 8646),
    _llama_2("Llama 2 70B", 64, f"{_70B} {layout(4, 4, 20)} {SP}", 8, 1707),
    _nemotron("Nemotron 8B", 64, f"{sizes(32, 4096, 32, 16384)} {layout(2)}", 4, 256, 12701, _NO_GROUPS),
    _nemotron("Nemotron 22B", 64, f"{sizes(40, 6144, 48, 24576)} {layout(2, 4, 10)}", 2, 256, 4256, _NO_GROUPS),
    _nemotron("Nemotron-4 340B", 128, f"{sizes(96, 18432, 96, 73728)} {layout(8, 8, 12)}", 1, 32, 322),
    _llama_3("Llama 3 8B", 8, f"{_8B} {layout(1, 1, 1, 2)}", 128, 12036, _2407, "delayed"),
    _llama_3("Llama 3 70B", 64, f"{_70B} {layout(4, 4, 5, 2)} {SP}", 128, 1533, _2407, "delayed"),
    _llama_3("Llama 3 8B", 8, f"{_8B} {layout(1)}", 128, 14451, f"{_BRIDGE} 25.11; FSDP there"),
    _llama_3("Llama 3 70B", 64, f"{_70B} {layout(4, 8, 5)} {SP}", 128, 1602, f"{_BRIDGE} 25.11"),
    _llama_3("Llama 3 70B", 64, f"{_70B} {layout(4, 8, 5)} {SP}", 256, 1621, f"{_BRIDGE} 26.02"),
    _llama_3("Llama 3.1 405B", 1024, f"{_405B} {layout(8, 8, 8, 2)}", 512, 292, f"{_BRIDGE} 25.11"),
    _llama_3("Llama 3.1 405B", 1024, f"{_405B} {layout(8, 8, 8, 2)}", 1536, 311, f"{_BRIDGE} 26.02"),
    _llama_3("Llama 3 8B", 8, f"{_8B} {layout(1)}", 128, 30624, f"{_BRIDGE} 25.11, DGX-B200", micro=2),
    _llama_3("Llama 3 8B", 8, f"{_8B} {layout(1)}", 128, 29521, f"{_BRIDGE} 25.11, DGX-B200", "mxfp8", 2),
    _llama_3("Llama 3.1 405B", 128, f"{_405B} {layout(4, 8, 8, 2)}", 64, 661, f"{_BRIDGE} 25.11, DGX-B200"),
)
