"""A page beside checkpoints for people with other tools: those build a stock GPT, which computes another function."""

from __future__ import annotations

from pathlib import Path

from megatron_cod.schemes.table import SCHEMES, STOCK

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


def write_readme(folder: Path, name: str, version: str) -> None:
    """Write the page into a folder of checkpoints; none for the stock scheme, whose checkpoints any tool may load."""
    if name == STOCK:
        return
    row = SCHEMES.get(name)
    block = f"a block computes {row.block}, which" if row else "what its blocks compute"
    lost = f"{block} is in the code of the layers, not in the weights"
    (folder / NAME).write_text(_TEXT.format(version=version, scheme=name, lost=lost))
