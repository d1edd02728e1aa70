"""Published runs with their configurations: what the cost model is fitted to and tried on.

Order: first A100, then H100; dense models before mixtures of experts, each by number of parameters. Halves: the models at
odd places of a machine's list are fitted, those at even places only tried. The rule is older than the first prediction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_cod.planner.layer import TODAY, Software

_TABLE_1 = "arXiv 2104.04473, table 1; sizes and schedules: Megatron-LM, examples/sc21/run_table_1.sh"
_RECIPES = "github.com/NVIDIA/dgxc-benchmarking, commit 143b90d"
_LLAMA = "arXiv 2407.21783, table 4"
_QWEN = "github.com/yanring/Megatron-MoE-ModelZoo, best_practice/Qwen3/readme.md, commit c1ad0b5"
_2021 = Software(overlaps_backward=False, scatters_transfers=True)
_ALWAYS = (
    "--norm-scheme pre_ln --mock-data --tokenizer-type NullTokenizer --vocab-size 1024 --lr 1e-4 --train-iters 100 "
    "--eval-iters 0"
)
LLAMA_BLOCKS = (
    "--bf16 --normalization RMSNorm --swiglu --disable-bias-linear --position-embedding-type rope "
    "--untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0 --group-query-attention"
)
NEMOTRON_BLOCKS = (
    "--bf16 --normalization LayerNorm --apply-layernorm-1p --squared-relu --disable-bias-linear --rotary-percent 0.5 "
    "--position-embedding-type rope --untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0 "
    "--group-query-attention --num-query-groups 8 --padded-vocab-size 256000 --seq-length 4096 "
    "--max-position-embeddings 4096"
)
OVERLAPS = "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"


@dataclass(frozen=True)
class PublishedRow:
    """One measured run."""

    model: str
    machine: str
    gpus: int
    flags: str
    source: str
    seconds: float = 0.0
    """Measured, of a step; 0 where the source has TFLOP/s only."""
    tflops: float = 0.0
    """Of a GPU, as the source counts them; 0 where it has seconds."""
    counts_recomputation: bool = False
    """Whether the source's TFLOP/s count the forward pass that is made again (equation 3 of arXiv 2104.04473)."""
    software: Software = TODAY
    kernels: Mapping[str, Any] = field(default_factory=dict)
    """Arguments set after the checks: what needs packages that are not on every machine."""
    note: str = ""

    def words(self) -> list[str]:
        """The launch's command line."""
        return [*_ALWAYS.split(), *self.flags.split()]


def layout(tensor: int, pipeline: int = 1, virtual: int = 1, context: int = 1) -> str:
    words = f"--tensor-model-parallel-size {tensor} --pipeline-model-parallel-size {pipeline}"
    words += f" --context-parallel-size {context}"
    return words + (f" --num-virtual-stages-per-pipeline-rank {virtual}" if virtual > 1 else "")


def sizes(layers: int, hidden: int, heads: int, ffn: int = 0) -> str:
    words = f"--num-layers {layers} --hidden-size {hidden} --num-attention-heads {heads}"
    return words + (f" --ffn-hidden-size {ffn}" if ffn else "")


def _batch(micro: int, whole: int) -> str:
    return f"--micro-batch-size {micro} --global-batch-size {whole}"


def _narayanan(model: str, gpus: int, sizes: str, layout: str, batch: str, tflops: float) -> PublishedRow:
    """GPT with all activations recomputed, in fp16, no sequence parallelism, attention that writes its scores."""
    same = (
        "--fp16 --seq-length 2048 --max-position-embeddings 2048 --padded-vocab-size 51200 --attention-backend unfused "
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
    )
    flags = f"{same} {sizes} {layout} {batch}"
    return PublishedRow(
        model, "a100_80gb", gpus, flags, _TABLE_1, tflops=tflops, counts_recomputation=True, software=_2021
    )


_A100 = (
    _narayanan("GPT 1.7B", 32, sizes(24, 2304, 24), layout(1), _batch(16, 512), 137),
    _narayanan("GPT 3.6B", 64, sizes(30, 3072, 32), layout(2), _batch(16, 512), 138),
    _narayanan("GPT 7.5B", 128, sizes(36, 4096, 32), layout(4), _batch(16, 512), 142),
    _narayanan("GPT 18.4B", 256, sizes(40, 6144, 48), layout(8), _batch(8, 1024), 135),
    _narayanan("GPT 39.1B", 512, sizes(48, 8192, 64), layout(8, 2), _batch(4, 1536), 138),
    _narayanan("GPT 76.1B", 1024, sizes(60, 10240, 80), layout(8, 4, 3), _batch(2, 1792), 140),
    _narayanan("GPT 145.6B", 1536, sizes(80, 12288, 96), layout(8, 8, 2), _batch(2, 2304), 148),
    _narayanan("GPT 310.1B", 1920, sizes(96, 16384, 128), layout(8, 16, 2), _batch(1, 2160), 155),
    _narayanan("GPT 529.6B", 2520, sizes(105, 20480, 128), layout(8, 35, 3), _batch(1, 2520), 163),
    _narayanan("GPT 1008.0B", 3072, sizes(128, 25600, 160), layout(8, 64), _batch(1, 3072), 163),
)

_TP_OVERLAP: Mapping[str, Any] = {"tp_comm_overlap": True}


def _recipe(
    model: str, page: str, flags: str, sequence: str, runs: tuple[tuple[int, int, float], ...], overlaps: bool = True
) -> tuple[PublishedRow, ...]:
    """Runs of one NeMo recipe in bf16, nothing recomputed. runs: GPUs, sequences a step, seconds."""
    return tuple(
        PublishedRow(
            model,
            "h100",
            gpus,
            f"{flags} {sequence} {OVERLAPS} --global-batch-size {batch}",
            f"{_RECIPES}, {page}",
            seconds=seconds,
            kernels=_TP_OVERLAP if overlaps else {},
        )
        for gpus, batch, seconds in runs
    )


LLAMA_3 = f"{LLAMA_BLOCKS} --num-query-groups 8 --padded-vocab-size 128256 --micro-batch-size 1"
AT_8192 = "--seq-length 8192 --max-position-embeddings 8192"
SP = "--sequence-parallel"


def _llama_405b(gpus: int, tflops: float) -> PublishedRow:
    """16 stages of 8 virtual ones, the first with the embedding alone, the last with the loss alone."""
    flags = (
        f"{LLAMA_3} {AT_8192} {sizes(126, 16384, 128, 53248)} {layout(8, 16, 8)} {SP} {OVERLAPS} "
        "--global-batch-size 2048 --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split"
    )
    note = "Meta's own code; FLOPs counted as here"
    return PublishedRow("Llama 3 405B, Meta", "h100", gpus, flags, _LLAMA, tflops=tflops, note=note)


def _qwen(layout: str, more: str, seconds: float, kernels: Mapping[str, Any] | None = None) -> PublishedRow:
    flags = (
        f"{LLAMA_BLOCKS} {sizes(94, 4096, 64, 12288)} --num-query-groups 4 --kv-channels 128 --qk-layernorm "
        "--num-experts 128 --moe-ffn-hidden-size 1536 --moe-router-topk 8 --moe-token-dispatcher-type alltoall "
        "--moe-grouped-gemm --padded-vocab-size 151936 --seq-length 4096 --max-position-embeddings 4096 "
        f"--expert-tensor-parallel-size 1 {SP} --account-for-embedding-in-pipeline-split "
        "--account-for-loss-in-pipeline-split "
        f"{_batch(1, 2048)} {OVERLAPS} {layout} {more}"
    )
    return PublishedRow("Qwen3 235B-A22B", "h100", 256, flags, _QWEN, seconds=seconds, kernels=kernels or {})


_DEEP_EP: Mapping[str, Any] = {"moe_token_dispatcher_type": "flex"}
_NORM_ACT = "--recompute-granularity selective --recompute-modules layernorm moe_act"
_GROK = (
    f"{LLAMA_BLOCKS} --num-query-groups 8 --padded-vocab-size 128256 {sizes(64, 6144, 48, 32768)} --num-experts 8 "
    "--moe-router-topk 2 --moe-token-dispatcher-type alltoall --moe-expert-capacity-factor 1.0 "
    "--moe-pad-expert-input-to-capacity --moe-router-load-balancing-type aux_loss --micro-batch-size 1 "
    f"{layout(4, 8, 8, 2)} --expert-model-parallel-size 8 {SP}"
)
GPT_175B_SIZES = sizes(96, 12288, 96)
_GPT_175B = (
    f"--bf16 --padded-vocab-size 51200 {GPT_175B_SIZES} {layout(4, 8, 12)} {SP} --micro-batch-size 1 "
    "--grad-reduce-in-bf16"
)
_H100 = (
    *_recipe(
        "Llama 3.1 8B",
        "llama3.1/README_8b.md",
        f"{LLAMA_3} {sizes(32, 4096, 32, 14336)} {layout(1, 1, 1, 2)}",
        AT_8192,
        ((8, 128, 12.91), (128, 2048, 13.10)),
    ),
    *_recipe(
        "Nemotron-4 15B",
        "nemotron/README_15b.md",
        f"{NEMOTRON_BLOCKS} {sizes(32, 6144, 48, 24576)} {layout(4)} {SP} --micro-batch-size 4",
        "",
        ((16, 64, 2.812), (2048, 8192, 2.887)),
    ),
    *_recipe(
        "Llama 3.1 70B",
        "llama3.1/README_70b.md",
        f"{LLAMA_3} {sizes(80, 8192, 64, 28672)} {layout(4, 4, 5, 2)} {SP}",
        AT_8192,
        ((64, 128, 14.72), (2048, 4096, 14.98)),
    ),
    *_recipe(
        "GPT-3 175B",
        "nemo_megatron/README_175b.md",
        _GPT_175B,
        "--seq-length 2048 --max-position-embeddings 2048",
        ((128, 256, 8.309), (2048, 4096, 8.49)),
    ),
    *_recipe(
        "Nemotron-4 340B",
        "nemotron/README_340b.md",
        f"{NEMOTRON_BLOCKS} {sizes(96, 18432, 96, 73728)} {layout(8, 8, 12)} {SP} "
        "--micro-batch-size 1 --grad-reduce-in-bf16",
        "",
        ((128, 32, 4.61), (2048, 512, 4.84)),
    ),
    *_recipe(
        "Llama 3.1 405B",
        "llama3.1/README_405b.md",
        f"{LLAMA_3} {sizes(126, 16384, 128, 53248)} {layout(8, 9, 7, 2)} {SP}",
        AT_8192,
        ((576, 252, 17.20), (2304, 1008, 17.62)),
    ),
    _llama_405b(8192, 430),
    _llama_405b(16384, 400),
    _qwen(f"{layout(2, 8, 4)} --expert-model-parallel-size 32", _NORM_ACT, 19.7, _DEEP_EP),
    _qwen(f"{layout(2, 32, 3)} --expert-model-parallel-size 8", _NORM_ACT, 24.2),
    _qwen(f"{layout(4, 8, 4)} --expert-model-parallel-size 8", "", 29.0, _DEEP_EP),
    *_recipe(
        "Grok-1 314B",
        "grok1/README_314b.md",
        f"{_GROK} --grad-reduce-in-bf16",
        AT_8192,
        ((512, 1024, 20.83), (2048, 4096, 21.09)),
        overlaps=False,
    ),
)
PUBLISHED = _A100 + _H100


def is_fitted(row: PublishedRow) -> bool:
    """Whether a row is in the half that constants are fitted to."""
    models = list(dict.fromkeys(other.model for other in PUBLISHED if other.machine == row.machine))
    return models.index(row.model) % 2 == 0
