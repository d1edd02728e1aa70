"""Blocks of transformers' models, found and run alone; every metric on tiny ones of the paper's families."""

import pytest
import torch

from megatron_cod.analysis.depth.measure import METRICS, Budget, measure
from megatron_cod.analysis.depth.models import find_blocks, traced_transformers
from tests.analysis.depth.models import FAMILIES, build, text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow_except(
    "llama",
    "deepseek v3",
    "gpt2",
)
def test_blocks_run_alone_are_the_model(family):
    model = build(family)
    traced, tokens = traced_transformers(model), text(2, 16)
    with torch.no_grad():
        trace = traced.trace(tokens)
        assert traced.depth == 3
        hidden = model(tokens, output_hidden_states=True, use_cache=False).hidden_states
        for ours, theirs in zip(trace.streams[:-1], hidden[:-1], strict=True):  # theirs ends behind the final norm
            assert torch.allclose(ours, theirs, atol=1e-6)
        again = traced.through(trace, trace.streams[0], [1, 2, 3])
        assert torch.allclose(again, trace.streams[3], atol=1e-5)
        assert torch.allclose(traced.head(trace, again), model(tokens).logits, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow_except("deepseek v3", "llama")
def test_every_metric_runs_on_every_model(family):
    found = measure(
        traced_transformers(build(family)), Budget([text(2, 16)], [text(8, 16, 1)], jacobian_draws=1), METRICS
    )
    assert len(found["removal"]) == len(found["jacobian"]) == len(found["usefulness"]["useful"]) == 3
    assert all(one["mean"] == one["mean"] for one in (*found["removal"], *found["jacobian"], *found["logit lens"]))


def test_removal_is_a_model_without_the_block():
    """Against transformers itself with the layer deleted."""
    model, tokens = build("llama"), text(2, 16)
    found = measure(traced_transformers(model), Budget([tokens]), ("surgery",))
    for number in range(3):
        shorter = build("llama")
        del shorter.model.layers[number]
        for place, layer in enumerate(shorter.model.layers):
            layer.self_attn.layer_idx = place
        shorter.config.num_hidden_layers = 2
        with torch.no_grad():
            losses = [float(m(tokens, labels=tokens).loss) for m in (shorter, model)]
        assert found["removal"][number]["mean"] == pytest.approx(losses[0] - losses[1], abs=1e-4)


def test_rejects_models_with_several_lists_of_blocks():
    model = build("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match=r"give --blocks, one of: model\.layers \(3\)"):
        find_blocks(model)
    assert len(find_blocks(model, "model.layers")) == 3
    with pytest.raises(ValueError, match="--blocks layers: the model has no such list"):
        find_blocks(model, "layers")


def test_experts_are_not_treated_as_blocks():
    inner = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(3)])
    blocks = torch.nn.ModuleList(
        [torch.nn.ModuleDict({"experts": inner}), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    )
    model = torch.nn.ModuleDict({"layers": blocks})
    model.config = type("Config", (), {"num_hidden_layers": 3})()
    assert find_blocks(model) is blocks
