"""Blocks removed or merged: the new model is the old one run without them, whatever its family, and its files load."""

import sys

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from megatron_cod.analysis.depth.models import traced_transformers
from megatron_cod.analysis.depth.prune import Plan, is_list_of_layers, prune
from megatron_cod.errors import UserError
from megatron_cod.huggingface.verification import loaded_whole, logits_of
from tests.analysis.depth.models import FAMILIES, SMALL, build, text
from tests.conftest import ROOT
from tests.programs import run_program


@pytest.mark.slow_except("deepseek v2", "deepseek v3", "gpt2", "llama")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_removed_block_is_a_run_without_it(family, tmp_path):
    tokens = text(2, 12)
    for number in (1, 2, 3):
        whole, shorter = traced_transformers(build(family)), build(family)
        with torch.no_grad():
            trace = whole.trace(tokens)
            order = [kept for kept in (1, 2, 3) if kept != number]
            expected = whole.head(trace, whole.through(trace, trace.streams[0], order))
            prune(shorter, Plan.removing(3, {number}))
            folder = tmp_path / str(number)
            shorter.save_pretrained(folder)
            again = AutoModelForCausalLM.from_pretrained(folder).eval()
            assert torch.allclose(again(tokens, use_cache=False).logits, expected, atol=1e-5)


def test_merged_blocks_are_the_mean_of_their_weights():
    whole, merged = build("llama"), build("llama")
    prune(merged, Plan.merging(3, 2, 3))
    assert len(merged.model.layers) == merged.config.num_hidden_layers == 2
    for name, tensor in merged.model.layers[1].named_parameters():
        parts = [dict(whole.model.layers[place].named_parameters())[name] for place in (1, 2)]
        assert torch.allclose(tensor, (parts[0] + parts[1]) / 2)


def test_unlike_blocks_are_not_averaged():
    with pytest.raises(ValueError, match="blocks 1 to 2 are not built alike"):
        prune(build("deepseek v3"), Plan.merging(3, 1, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plan.removing(3, {4}), "no block 4: the model has blocks 1 to 3"),
        (lambda: Plan.removing(2, {1, 2}), "all 2 blocks would be removed"),
        (lambda: Plan.merging(3, 2, 2), "--merge 2 2: the first must come before the last"),
    ],
)
def test_rejects_invalid_removals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_writes_the_directory_at_once(tmp_path):
    build("llama").save_pretrained(tmp_path / "model")
    command = ["prune_layers.py", "--model", tmp_path / "model", "--output", tmp_path / "out", "--remove", "2"]
    done = run_program(*command)
    assert done.returncode == 2 and "no tokenizer files" in done.stderr
    from tests.analysis.depth.toys import save_tokenizer

    save_tokenizer(tmp_path / "model")
    done = run_program(*command)
    assert done.returncode == 0, done.stderr
    assert "3 blocks become 2: 1 3" in done.stdout
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 2
    assert not (tmp_path / "out.part").exists()


LISTS = {
    "no_rope_layers": (
        "SmolLM3ForCausalLM",
        {"num_key_value_heads": 2, "no_rope_layers": [1, 1, 1, 0, 1, 1], "pad_token_id": 0},
    ),
    "mlp_only_layers": ("Qwen3MoeForCausalLM", {"mlp_only_layers": [1, 3], "decoder_sparse_step": 1}),
    "decoder_sparse_step": ("Qwen3MoeForCausalLM", {"mlp_only_layers": [3], "decoder_sparse_step": 2}),
    "layer_types": (
        "Qwen3ForCausalLM",
        {
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 3,
            "num_key_value_heads": 2,
            "head_dim": 8,
        },
    ),
    "layer_types, every second": (
        "Gemma2ForCausalLM",
        {"sliding_window": 4, "head_dim": 8, "query_pre_attn_scalar": 8},
    ),
    "first_k_dense_replace": ("Glm4MoeForCausalLM", {"first_k_dense_replace": 2, "n_routed_experts": 4, "n_group": 1}),
    "ids of tokens, as many as blocks": ("LlamaForCausalLM", {"eos_token_id": [1, 2, 3, 4, 5, 6]}),
}
EXPERTS = {
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "num_key_value_heads": 2,
}


def with_lists(name):
    kind, more = LISTS[name]
    model_class = getattr(transformers, kind)
    sizes = {**SMALL, "num_hidden_layers": 6, **(EXPERTS if "Moe" in kind else {}), **more}
    torch.manual_seed(3)
    return model_class(model_class.config_class(**sizes)).eval()


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("removed", [{2, 5}, {6}])
@pytest.mark.slow_except("removed0-first_k_dense_replace", "removed0-layer_types")
def test_lists_per_layer_follow_their_layers(name, removed, tmp_path):
    """The directory loads whole, and computes what the whole model does with these blocks omitted where they stand."""
    tokens = text(2, 24)
    whole, shorter = with_lists(name), with_lists(name)
    prune(shorter, Plan.removing(6, removed))
    shorter.save_pretrained(tmp_path)
    again = loaded_whole(tmp_path)
    for number in removed:
        whole.model.layers[number - 1].forward = lambda hidden_states, *_, **__: hidden_states
    expected, found = logits_of(whole, tokens), logits_of(again, tokens)
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()
    assert again.config.num_hidden_layers == 6 - len(removed)
    if name.startswith("ids"):
        assert again.config.eos_token_id == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("value", "layers"),
    [([1, 3], True), ([0, 1, 2, 3], True), ([], False), ([1, 0, 1, 1], False), ([1, 4], False), (["a", "b"], False)],
)
def test_distinguishes_lists_of_layers_from_lists_by_layer(value, layers):
    assert is_list_of_layers(value, 4) is layers


@pytest.mark.parametrize("name", ["no_rope_layers", "mlp_only_layers", "decoder_sparse_step"])
def test_a_result_that_computes_something_else_is_not_kept(name, tmp_path, monkeypatch):
    """With the lists left as they were: refused by the tool, and no directory."""
    import runpy

    from megatron_cod.analysis.depth import prune as pruning
    from tests.analysis.depth.toys import save_tokenizer

    with_lists(name).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    monkeypatch.setattr(pruning, "_shorten_lists", lambda *_: None)
    command = ["prune_layers.py", "--model", tmp_path / "model", "--output", tmp_path / "out", "--remove", "2", "5"]
    monkeypatch.setattr(sys, "argv", [str(one) for one in command])
    main = runpy.run_path(str(ROOT / "tools" / "prune_layers.py"))["main"]
    with pytest.raises(UserError, match=r"does not load|another function"):
        main()
    assert not list(tmp_path.glob("out*"))
