"""Mistakes in a table that a round trip would not see, since export undoes what import did: Megatron's logits do."""

from dataclasses import replace

import pytest
import torch

from megatron_cod.huggingface import import_plan, recipe
from megatron_cod.huggingface.families import mapping_rows, table
from megatron_cod.huggingface.importing import ImportJob, import_model
from tests.huggingface.megatron import ONE, megatron_logits
from tests.huggingface.models import make_model, tokens, transformers_logits


def with_join(change):
    """Every family's table with other joins."""

    def put(monkeypatch):
        for name, family in table.FAMILIES.items():
            changed = tuple(replace(row, join=change(row.join)) for row in family.rows)
            monkeypatch.setitem(table.FAMILIES, name, replace(family, rows=changed))

    return put


def stacked(join):
    """All queries, then all keys, then all values, as transformers' fused models have them."""
    if join not in (mapping_rows.QKV, mapping_rows.FUSED_QKV):
        return join
    return replace(join, to_megatron=lambda parts, _: torch.cat(list(parts)))


def up_first(join):
    if join is not mapping_rows.GATE_UP:
        return join
    return replace(join, to_megatron=lambda parts, _: torch.cat(list(parts)[::-1]))


def other_base(monkeypatch):
    """RoPE's base is not carried over."""
    right = recipe.recipe_of
    monkeypatch.setattr("megatron_cod.huggingface.importing.recipe_of", lambda arch: {**right(arch), "rotary-base": 10})


def other_epsilon(monkeypatch):
    right = recipe.recipe_of
    changed = {"norm-epsilon": 1e-2}
    monkeypatch.setattr("megatron_cod.huggingface.importing.recipe_of", lambda arch: {**right(arch), **changed})


def swapped_norms(monkeypatch):
    """The gammas of the two norms of a block are exchanged."""
    for name, family in table.FAMILIES.items():
        norms = [row for row in family.rows if row.part in mapping_rows.NORMS]
        other = {norms[0]: replace(norms[0], hf=norms[1].hf), norms[1]: replace(norms[1], hf=norms[0].hf)}
        changed = tuple(other.get(row, row) for row in family.rows)
        monkeypatch.setitem(table.FAMILIES, name, replace(family, rows=changed))


def unscaled_experts(monkeypatch):
    """The factor on the chosen experts' sum is not carried over."""
    right = recipe.recipe_of

    def without(arch):
        return {key: value for key, value in right(arch).items() if key != "moe-router-topk-scaling-factor"}

    monkeypatch.setattr("megatron_cod.huggingface.importing.recipe_of", without)


def with_recipe(change):
    """The import's recipe with other values of its keys."""

    def put(monkeypatch):
        right = recipe.recipe_of
        monkeypatch.setattr("megatron_cod.huggingface.importing.recipe_of", lambda arch: change(right(arch)))

    return put


def halves(join):
    return mapping_rows.QKV if join is mapping_rows.PAIRED_QKV else join


def swapped_branch_norms(monkeypatch):
    """The norm behind the attention is that behind the MLP."""
    for name, family in table.FAMILIES.items():
        norms = [row for row in family.rows if row.part in mapping_rows.BRANCH_NORMS]
        if norms:
            other = {norms[0]: replace(norms[0], hf=norms[1].hf), norms[1]: replace(norms[1], hf=norms[0].hf)}
            changed = tuple(other.get(row, row) for row in family.rows)
            monkeypatch.setitem(table.FAMILIES, name, replace(family, rows=changed))


def unscaled_branches(monkeypatch):
    """What the model multiplies its branches with is not folded."""
    monkeypatch.setattr(import_plan.Change, "factors", lambda self, unit: (1.0, 1.0))


def swapped_qk_norms(monkeypatch):
    """The norm of the queries is that of the keys."""
    for name, family in table.FAMILIES.items():
        norms = [row for row in family.rows if "_norm.weight" in row.hf[0][0] and "self_attn" in row.hf[0][0]]
        if len(norms) == 2:
            other = {norms[0]: replace(norms[0], hf=norms[1].hf), norms[1]: replace(norms[1], hf=norms[0].hf)}
            changed = tuple(other.get(row, row) for row in family.rows)
            monkeypatch.setitem(table.FAMILIES, name, replace(family, rows=changed))


MUTANTS = {
    "none": ("llama", lambda _: None),
    "queries, keys, values stacked": ("llama", with_join(stacked)),
    "up before gate": ("llama", with_join(up_first)),
    "up before gate, experts": ("mixtral", with_join(up_first)),
    "RoPE's base": ("llama", other_base),
    "epsilon": ("llama", other_epsilon),
    "norms swapped": ("qwen3", swapped_norms),
    "experts' factor": ("deepseek v3", unscaled_experts),
    "experts of all groups": ("deepseek v2 groups", with_recipe(lambda held: {**held, "moe-router-group-topk": 4})),
    "a fused tensor stacked": ("phi3", with_join(stacked)),
    "norms of queries and keys swapped": ("qwen3 moe", swapped_qk_norms),
    "experts normalised again": ("qwen3 moe", with_recipe(lambda held: {**held, "moe-router-pre-softmax": True})),
    "experts not normalised": (
        "qwen3 moe dense first",
        with_recipe(lambda held: {**held, "moe-router-pre-softmax": False}),
    ),
    "neighbouring channels as halves": ("glm4", with_join(halves)),
    "RoPE on whole heads": ("glm4", with_recipe(lambda held: {**held, "rotary-percent": 1.0})),
    "norms behind the branches swapped": ("glm4", swapped_branch_norms),
    "the embedding's multiplier": ("granite", with_recipe(lambda held: {**held, "mup-embedding-mult": 1.0})),
    "the logits' multiplier": ("granite", with_recipe(lambda held: {**held, "mup-output-mult": 1.0})),
    "the attention's multiplier": ("granite", with_recipe(lambda held: {**held, "mup-attn-scale-power": 0.5})),
    "the branches' multiplier": ("granite", unscaled_branches),
    "gamma for gamma less 1": ("gemma", with_recipe(lambda held: {**held, "apply-layernorm-1p": False})),
    "the scale of the embedding": ("gemma3", with_recipe(lambda held: {**held, "mup-embedding-mult": 1.0})),
    "silu for gelu": ("gemma2", with_recipe(lambda held: {**held, "geglu": False})),
    "layers without RoPE shifted": (
        "smollm3",
        with_recipe(lambda held: {**held, "no-rope-freq": "[1,0,1,0]"}),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.slow_except("layers without RoPE shifted", "norms of queries and keys swapped")
def test_detects_wrong_table(tmp_path, monkeypatch, name):
    model, mutate = MUTANTS[name]
    make_model(model, tmp_path / "hf")
    mutate(monkeypatch)
    import_model(ImportJob(tmp_path / "hf", tmp_path / "megatron"))
    difference = megatron_logits(tmp_path / "megatron", ONE, tokens()) - transformers_logits(tmp_path / "hf", tokens())
    assert (difference.abs().max() <= 1e-5) == (name == "none")
    assert name == "none" or difference.abs().max() > 1e-3
