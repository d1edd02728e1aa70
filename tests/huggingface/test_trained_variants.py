"""Checkpoints that training itself wrote, of every architecture, at a parallel layout: exported, stock transformers agree.

The import tests read what the importer wrote; here the names and the layout are Megatron's own.
"""

import pytest
import torch

from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.importing import ImportJob, import_model
from tests.conftest import ROOT
from tests.distributed.mapping import Layout
from tests.distributed.runs import succeed
from tests.huggingface.megatron import ONE, megatron_logits
from tests.huggingface.models import tokens, transformers_logits

SHAPE = [*("--num-layers", "4", "--hidden-size", "32", "--ffn-hidden-size", "64", "--max-position-embeddings", "32")]
MOE = [
    *("--num-experts", "4", "--moe-router-topk", "2", "--moe-ffn-hidden-size", "48", "--moe-router-dtype", "fp32"),
    *("--moe-router-load-balancing-type", "none", "--moe-token-dispatcher-type", "alltoall"),
]
MLA = [
    *("--multi-latent-attention", "--q-lora-rank", "16", "--kv-lora-rank", "16", "--qk-head-dim", "8"),
    *("--qk-pos-emb-head-dim", "8", "--v-head-dim", "12", "--qk-layernorm", "--rope-type", "rope"),
]
SIGMOID = [
    *("--moe-router-score-function", "sigmoid", "--moe-router-enable-expert-bias"),
    *("--moe-router-topk-scaling-factor", "2.5", "--moe-shared-expert-intermediate-size", "48"),
    *("--moe-layer-freq", "([0]*1+[1]*3)"),
]
SANDWICH = ["--norm-scheme", "sandwich_ln"]
EP2 = Layout(dp=2, flags=("--expert-model-parallel-size", "2"))
PP2_EP2 = Layout(pp=2, dp=2, flags=("--expert-model-parallel-size", "2"))
TP2_SP = Layout(tp=2, flags=("--sequence-parallel",))
VARIANTS = {
    "qwen2": (["--add-qkv-bias", "--group-query-attention", "--num-query-groups", "2"], Layout(pp=2, vp=2)),
    "qwen3": (["--qk-layernorm"], Layout(tp=2, pp=2)),
    "llama": (["--use-rope-scaling", "--rope-scaling-factor", "32", "--rotary-base", "500000"], Layout(tp=2)),
    "llama tied": ([], Layout(pp=2)),
    "glm": (["--rotary-percent", "0.25", "--add-qkv-bias"], Layout(tp=2)),
    "gemma": (["--geglu", "--apply-layernorm-1p"], Layout(pp=2)),
    "glm4": (
        [*SANDWICH, "--group-query-attention", "--num-query-groups", "2", "--rotary-percent", "0.5"],
        Layout(tp=2),
    ),
    "gemma2": ([*SANDWICH, "--geglu"], Layout(tp=2)),
    "gemma3_text": ([*SANDWICH, "--qk-layernorm"], Layout(pp=2)),
    "smollm3": (["--no-rope-freq", "2"], Layout(pp=2)),
    "llama yarn": (
        [
            *("--position-embedding-type", "yarn", "--rotary-scaling-factor", "4", "--mscale", "0.5"),
            *("--yarn-original-max-position-embeddings", "8", "--yarn-beta-fast", "4"),
        ],
        Layout(tp=2),
    ),
    "qwen3_moe": ([*MOE, "--qk-layernorm"], EP2),
    "mixtral": (MOE, EP2),
    "deepseek_v3": ([*MLA, *MOE, *SIGMOID], PP2_EP2),
    "deepseek_v2": ([*MLA, *MOE, "--moe-router-pre-softmax", "--moe-shared-expert-intermediate-size", "96"], TP2_SP),
}


SLOW = ("glm", "gemma", "gemma2", "gemma3_text", "qwen2", "llama tied", "qwen3_moe", "mixtral", "deepseek_v2")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in VARIANTS])
@pytest.mark.slow
def test_training_writes_what_the_table_reads(tiny, tmp_path, name):
    flags, layout = VARIANTS[name]
    tied = ["--unset", "untie-embeddings-and-output-weights"] if name == "llama tied" else []
    model = [*SHAPE, *flags, *tied]
    rate = ["--lr", "1e-2", "--min-lr", "1e-2", "--global-batch-size", "8", "--ckpt-format", "torch_dist"]
    save = ["--save", str(tmp_path / "run"), "--save-interval", "8"]
    succeed(layout.world, [*tiny, *model, *rate, *layout.all_flags(), *save])
    export_model(ExportJob(tmp_path / "run", tmp_path / "hf"))
    recipe = ROOT / "recipes" / "debug.yaml"
    ours = megatron_logits(tmp_path / "run", ONE, tokens(257), *model, recipe=recipe)[..., :257]
    theirs = transformers_logits(tmp_path / "hf", tokens(257))
    assert theirs.abs().max() > 0.1
    assert (ours - theirs).abs().max() <= 1e-5
    # And in again, at one process: the same function.
    scheme = "sandwich_ln" if "sandwich_ln" in flags else "lns"
    found = import_model(ImportJob(tmp_path / "hf", tmp_path / "back", as_scheme=scheme))
    assert found.arch.family == name.split()[0]
    again = megatron_logits(tmp_path / "back", ONE, tokens(257))
    assert (again - theirs).abs().max() <= 1e-5


@pytest.mark.slow
def test_training_resumes_from_an_import_at_a_layout(tiny, tmp_path):
    """Import, two steps at TP 2 x PP 2, saved, resumed at one process, exported: nothing but flags of the recipe."""
    from tests.huggingface.models import make_model

    make_model("llama", tmp_path / "hf")
    import_model(ImportJob(tmp_path / "hf", tmp_path / "lns", as_scheme="lns"))
    data = [*("--mock-data", "--eval-iters", "0", "--eval-interval", "10", "--lr", "1e-3", "--num-workers", "0")]
    batch = [
        "--micro-batch-size",
        "1",
        "--global-batch-size",
        "2",
        "--save",
        str(tmp_path / "on"),
        "--save-interval",
        "2",
    ]
    start = ["--recipe", str(tmp_path / "lns" / "recipe.yaml"), *data, *batch]
    layout = Layout(tp=2, pp=2)
    succeed(4, [*start, *layout.all_flags(), "--load", str(tmp_path / "lns"), "--train-iters", "2"])
    succeed(1, [*start, "--load", str(tmp_path / "on"), "--train-iters", "4", "--override-opt_param-scheduler"])
    export_model(ExportJob(tmp_path / "on", tmp_path / "back"))
    recipe = tmp_path / "lns" / "recipe.yaml"
    ours = megatron_logits(tmp_path / "on", ONE, tokens(), recipe=recipe)
    theirs = transformers_logits(tmp_path / "back", tokens())
    assert (ours - theirs).abs().max() <= 1e-5
    assert not torch.equal(theirs, transformers_logits(tmp_path / "hf", tokens()))
