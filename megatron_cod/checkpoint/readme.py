"""A page beside checkpoints for people with other tools: those build a stock GPT, which computes another function."""

from __future__ import annotations

from pathlib import Path

NAME = "README"
_TEXT = """\
Checkpoints of Megatron-Core (torch_dist), trained with megatron_cod {version}, norm scheme {scheme}.

DO NOT load them with tools that build a stock GPT from Megatron checkpoints: Megatron-LM's own converters and
pretrain_gpt.py without --spec, NeMo, Megatron-Bridge, lm-eval's megatron_lm backend. They find a weight for each of their
parameters, and compute another function without an error: {lost}.

Use instead:
  megatron-cod convert export --checkpoint THIS_FOLDER --output DIR      a stock Hugging Face model, where one computes it
  megatron-cod generate --checkpoint THIS_FOLDER "Some text"
  megatron-cod evaluate --load THIS_FOLDER --eval-data PATH
  megatron-cod train --load THIS_FOLDER ...                              checks that the scheme is the same
"""
_LOST = {"lns": "the depth factors 1/sqrt(l) of LayerNorm Scaling are in the code of the layers, not in the weights"}


def write_readme(folder: Path, scheme: str, stock: str, version: str) -> None:
    """Write the page into a folder of checkpoints; none for the stock scheme, whose checkpoints any tool may load."""
    if scheme == stock:
        return
    lost = _LOST.get(scheme, f"what the scheme {scheme} does is in the code of the layers, not in the weights")
    (folder / NAME).write_text(_TEXT.format(version=version, scheme=scheme, lost=lost))
