"""Blocks removed or merged: the new model is the old one run without them, whatever its family, and its files load."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_cod.analysis.depth.models import traced_transformers
from megatron_cod.analysis.depth.prune import Plan, prune
from tests.analysis.depth.test_models import FAMILIES, build, text
from tests.programs import run_program


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
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_tool_writes_a_directory_at_once(tmp_path):
    build("llama").save_pretrained(tmp_path / "model")
    command = ["prune_layers.py", "--model", tmp_path / "model", "--output", tmp_path / "out", "--remove", "2"]
    done = run_program(*command)
    assert done.returncode == 2 and "no tokenizer files" in done.stderr
    from tests.analysis.depth.test_tool import save_tokenizer

    save_tokenizer(tmp_path / "model")
    done = run_program(*command)
    assert done.returncode == 0, done.stderr
    assert "3 blocks become 2: 1 3" in done.stdout
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 2
    assert not (tmp_path / "out.part").exists()
