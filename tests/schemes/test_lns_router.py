"""``--lns-router``: what the router of experts sees under LNS, how sure it is by layer at the start, and its export."""

import math
import re

import pytest
import torch

from tests.conftest import ROOT, TINY
from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.runs import PP2, refuse, succeed
from tests.huggingface.megatron import ONE as ONE_PROCESS
from tests.huggingface.megatron import megatron_logits
from tests.huggingface.models import tokens, transformers_logits
from tests.oracle import Shape
from tests.programs import run_program

SHAPE = Shape(layers=16, hidden=32, ffn=48, heads=2, groups=2, vocab=64)
EXPERTS = ["--num-experts", "4", "--moe-ffn-hidden-size", "48", "--moe-token-dispatcher-type", "allgather"]
MOE = [*EXPERTS, "--moe-router-topk", "2", "--moe-grouped-gemm", "--moe-aux-loss-coeff", "0"]


def _entropies(engine: Engine, batch: torch.Tensor) -> tuple[torch.Tensor, dict[int, float]]:
    """Logits, and by layer the mean entropy of the router's softmax over all experts, in nats."""
    found: dict[int, float] = {}
    for layer in engine.model[0].module.decoder.layers:
        gating = layer.mlp.router.gating

        def watched(x, gating=gating, number=layer.layer_number):
            logits = gating(x)
            chances = logits.float().softmax(-1)
            found[number] = float(-(chances * chances.log()).sum(-1).mean())
            return logits

        layer.mlp.router.gating = watched
    with torch.no_grad():
        places = torch.arange(batch.shape[1])[None].expand(batch.shape)
        logits = engine.model[0](batch, places, None)
    return logits, dict(found)  # a copy: the next call on this engine passes this one's watch too


def _worker(_rank: int) -> dict[str, tuple]:
    sizes = ["--micro-batch-size", "1", "--global-batch-size", "2", "--init-method-std", "0.3"]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, 16), *Layout().all_flags(), *sizes, *MOE])
    batch = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))
    models = {}
    for name in ("scaled", "unscaled"):
        args.lns_router = name
        models[name] = Engine(args, Layout(), SHAPE, "lns")
    parameters = dict(models["unscaled"].model[0].named_parameters())
    result = {}
    with torch.no_grad():
        for name, parameter in models["scaled"].model[0].named_parameters():
            parameters[name].copy_(parameter)
        for name, engine in models.items():
            result[name] = _entropies(engine, batch)
        for name, parameter in models["scaled"].model[0].named_parameters():
            if name.endswith("router.weight"):  # what the unscaled router computes
                parameter.mul_(math.sqrt(int(re.search(r"layers\.(\d+)", name)[1]) + 1))
    result["folded"] = _entropies(models["scaled"], batch)
    return result


@pytest.fixture(scope="module")
def found() -> dict[str, tuple]:
    return run_ranks(1, _worker)[0]


def test_the_unscaled_router_divides_the_factor_out(found):
    assert (found["unscaled"][0] - found["folded"][0]).abs().max() <= 1e-5
    assert (found["unscaled"][0] - found["scaled"][0]).abs().max() > 1e-3


def test_the_scaled_router_is_less_sure_with_depth(found):
    """Entropy at the start, at most ln 4 = 1.386: it rises towards an even choice, and without the factor it does not."""
    entropies = {name: [by_layer[number] for number in range(1, 17)] for name, (_, by_layer) in found.items()}
    print({name: [round(one, 3) for one in row] for name, row in entropies.items()})
    assert entropies["scaled"][0] == pytest.approx(entropies["unscaled"][0], rel=1e-5)
    assert min(entropies["scaled"][8:]) > 0.9 * math.log(4) > max(entropies["unscaled"][8:])


@pytest.mark.slow
def test_exports_with_the_factor_in_the_routers_rows(tiny, tmp_path):
    flags = [*EXPERTS, "--moe-router-topk", "2", "--lns-router", "unscaled"]
    succeed(2, [*tiny, *flags, *PP2, "--save", str(tmp_path / "run"), "--save-interval", "8"])
    done = run_program("convert_hf.py", "export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "hf")
    assert done.returncode == 0, done.stderr
    recipe = ROOT / "recipes" / "debug.yaml"
    model = [flag for flag in TINY if flag not in ("--recipe", str(recipe))]
    ours = megatron_logits(tmp_path / "run", ONE_PROCESS, tokens(257), *model, *flags, recipe=recipe)[..., :257]
    assert (transformers_logits(tmp_path / "hf", tokens(257)) - ours).abs().max() <= 1e-5
    refuse(
        1, [*tiny, *flags[:-2], "--load", str(tmp_path / "run"), "--dry-run"], "lns_router unscaled .this run: scaled."
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--lns-router", "unscaled"], "--lns-router unscaled (without --num-experts there is no router)"),
        ([*EXPERTS, "--lns-router", "unscaled", "--lns-placement", "attention"], "--lns-router unscaled with"),
        (["--norm-scheme", "pre_ln", "--lns-router", "unscaled"], "--lns-router does not go with --norm-scheme pre_ln"),
    ],
)
def test_bad_input_is_one_line(tiny, flags, says):
    refuse(1, [*tiny, *flags, "--dry-run"], re.escape(says))
