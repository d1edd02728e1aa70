"""Multi-token prediction: its layers carry 1/sqrt(L + k), at every layout, and the factor acts."""

import math

import pytest
import torch

from megatron_cod.analysis.metrics import TRAIN_LOSS, read_metrics
from tests import oracle
from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.launch import run_ranks, run_training_ranks
from tests.distributed.mapping import Layout
from tests.distributed.runs import refuse
from tests.oracle import Shape

SHAPE = Shape(layers=4)
MTP2 = ["--mtp-num-layers", "2"]
LAYOUTS = {
    "pp2": (2, ["--pipeline-model-parallel-size", "2"], "pipeline stage 1, virtual stage 0: layers 3..6"),
    "tp2 sp": (2, ["--tensor-model-parallel-size", "2", "--sequence-parallel"], "layers 1..6"),
    "vp2": (
        2,
        ["--pipeline-model-parallel-size", "2", "--pipeline-model-parallel-layout", "Et|t|t|tmmL"],
        "pipeline stage 1, virtual stage 1: layers 4..6",
    ),
    "own stage": (
        4,
        ["--pipeline-model-parallel-size", "4", "--pipeline-model-parallel-layout", "Ettt|t|mm|L"],
        "pipeline stage 2, virtual stage 0: layers 5..6, norm factors 0.4472..0.4082",
    ),
}


def inner_layers(_rank: int) -> list[dict]:
    """What the block inside each multi-token-prediction layer got and gave, with its weights."""
    args = start_megatron(
        [*MODEL_FLAGS, *shape_flags(SHAPE, 32), "--micro-batch-size", "1", "--global-batch-size", "2", *MTP2]
    )
    engine = Engine(args, Layout(), SHAPE, "lns")
    seen: list[dict] = []
    for name, module in engine.model[0].named_modules():
        if name.endswith("mtp_model_layer"):
            weights = {key: value.detach().clone() for key, value in module.named_parameters()}
            module.register_forward_hook(
                lambda _m, _a, kwargs, out, w=weights: seen.append(
                    {"in": kwargs["hidden_states"].detach().clone(), "out": out[0].detach().clone(), "weights": w}
                ),
                with_kwargs=True,
            )
    tokens = torch.randint(0, SHAPE.vocab, (2, 32), generator=torch.Generator().manual_seed(1))
    engine.train(tokens[None], tokens.roll(-1, -1)[None])
    return seen


def plain_block(x: torch.Tensor, w: dict[str, torch.Tensor], factor: float) -> torch.Tensor:
    """The oracle's block on [b, s, h] with Megatron's names of the weights."""
    d, ffn = SHAPE.head_dim, SHAPE.ffn
    qkv = w["self_attention.linear_qkv.weight"].view(SHAPE.heads, 3, d, SHAPE.hidden)
    llama = {f"{name}_proj.weight": qkv[:, index].reshape(-1, SHAPE.hidden) for index, name in enumerate("qkv")}
    llama |= {
        "o_proj.weight": w["self_attention.linear_proj.weight"],
        "gate_proj.weight": w["mlp.linear_fc1.weight"][:ffn],
        "up_proj.weight": w["mlp.linear_fc1.weight"][ffn:],
        "down_proj.weight": w["mlp.linear_fc2.weight"],
    }
    x = x + oracle.attention(factor * oracle.rms_norm(x, w["input_layernorm.weight"], SHAPE.eps), llama, "", SHAPE)
    return x + oracle.mlp(factor * oracle.rms_norm(x, w["pre_mlp_layernorm.weight"], SHAPE.eps), llama, "")


def test_the_block_inside_is_scaled_by_L_plus_k():
    seen = run_ranks(1, inner_layers)[0]
    assert len(seen) == 4  # two micro-batches through two layers
    for index, one in enumerate(seen):
        number = SHAPE.layers + 1 + index % 2
        x, expected = one["in"].transpose(0, 1), one["out"].transpose(0, 1)
        right = plain_block(x, one["weights"], 1 / math.sqrt(number))
        wrong = plain_block(x, one["weights"], 1 / math.sqrt(1 + index % 2))  # Megatron's own number: k
        assert (right - expected).abs().max() < 1e-5
        assert (wrong - expected).abs().max() > 1e-3


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("mtp")
    ended = run_training_ranks(1, [*tiny, *MTP2, "--save", str(folder), "--save-interval", "4"])
    assert ended[0].code == 0, ended[0].output[-3000:]
    assert "layers 1..6, norm factors 1.0000..0.4082" in ended[0].output
    losses = read_metrics(folder / "metrics.jsonl").scalars
    (folder / "latest_checkpointed_iteration.txt").write_text("4")
    return folder, losses, ended[0].output


def parameters(output: str) -> str:
    return next(line for line in output.splitlines() if line.startswith("parameters: "))


@pytest.mark.parametrize(("world", "flags", "line"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.slow
def test_every_layout_resumes_alike(whole, tiny, tmp_path, world, flags, line):
    folder, expected, output = whole
    more = ["--load", str(folder), "--save", str(tmp_path / "o"), "--save-interval", "4"]
    ended = run_training_ranks(world, [*tiny, *MTP2, *flags, *more])
    assert [rank.code for rank in ended] == [0] * world, "".join(rank.output[-2000:] for rank in ended)
    assert line in ended[0].output
    assert parameters(ended[0].output) == parameters(output)
    found = read_metrics(tmp_path / "o" / "metrics.jsonl").scalars
    assert set(found[TRAIN_LOSS]) == {5, 6, 7, 8}
    tags = [tag for tag in found if "loss" in tag and "validation" not in tag and tag in expected]
    assert any("mtp" in tag for tag in tags), sorted(found)
    for tag in tags:
        assert max(abs(found[tag][step] - expected[tag][step]) for step in found[tag]) <= 1e-5, tag


def numbered_like_megatron() -> None:
    """The mutant: multi-token prediction at l = 1, 2 as Megatron numbers it."""
    from megatron_cod.schemes import design

    design.global_layer_number = lambda layer: layer.layer_number


def test_layer_1_again_never_trains(tiny):
    pattern = r"wrong depth factor: pipeline stage 0, virtual stage 0 scales layer 5 by 1\.0, expected 0\.447"
    refuse(1, [*tiny, "--mtp-num-layers", "1"], pattern, before=numbered_like_megatron)
