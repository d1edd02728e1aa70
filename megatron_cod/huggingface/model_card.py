"""README.md of an exported directory: what the hub shows of a model, and how to load and cite it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from megatron_cod import __version__
from megatron_cod.analysis.metrics import TRAIN_LOSS, VALID_LOSS, Metrics, read_metrics
from megatron_cod.errors import UserError
from megatron_cod.huggingface.export_job import Exported, ExportJob

NAME = "README.md"
_RECIPE = "resolved_args.yaml"
_MACHINE = ("save", "load", "tensorboard-dir", "rank-log-dir", "metrics-file", "wandb-project", "wandb-exp-name")
"""Keys of a recipe that concern the machine alone."""
_LOAD = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS_DIRECTORY_OR_ITS_NAME_ON_THE_HUB")
tokenizer = AutoTokenizer.from_pretrained("THIS_DIRECTORY_OR_ITS_NAME_ON_THE_HUB")
```"""
_CITATION = """\
```bibtex
@article{sun2025curse,
  title   = {The Curse of Depth in Large Language Models},
  author  = {Sun, Wenfang and Song, Xinyuan and Li, Pengxiang and Yin, Lu and Zheng, Yefeng and Liu, Shiwei},
  journal = {arXiv preprint arXiv:2502.05795},
  year    = {2025}
}
@software{megatron_cod,
  title   = {megatron_cod: pretraining deep language models with LayerNorm Scaling on Megatron-Core},
  author  = {{megatron_cod developers}},
  version = {%s},
  year    = {2026}
}
```"""


def _metadata(found: Exported, job: ExportJob, tokenizer: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {"library_name": "transformers"}
    if tokenizer:
        fields["pipeline_tag"] = "text-generation"
    if job.license:
        fields["license"] = job.license
    if job.base_model:
        fields["base_model"] = job.base_model
    return {**fields, "tags": ["megatron_cod", found.arch.family, f"norm-scheme:{found.scheme.scheme}"]}


def _scheme(found: Exported) -> str:
    scheme, family = found.scheme, found.arch.family
    if scheme.is_stock:
        block = "norms before and behind each branch" if scheme.branch_norms else "plain Pre-LN"
        return f"Norm scheme `{scheme.scheme}`: {block}, a stock {family} model."
    if found.folded:
        block = scheme.design.scheme.block
        return (
            f"Trained with the norm scheme `{scheme.scheme}`: block l computes `{block}`. **The factors are folded "
            f"into the weights**: this is a stock {family} model and needs no code of its own. To train it further under "
            f"`{scheme.scheme}`, import it with `megatron-cod convert import --as-scheme {scheme.scheme}`; each block "
            "keeps its function."
        )
    return (
        f"Trained with the norm scheme `{scheme.scheme}`. **Its factors are NOT folded into the weights**: stock loaders "
        "compute another function than the model that was trained."
    )


def _losses(metrics: Metrics, step: int) -> list[tuple[str, str]]:
    rows = []
    for title, name in (("training loss", TRAIN_LOSS), ("validation loss", VALID_LOSS)):
        values = [value for at, value in zip(*metrics.series(name), strict=True) if at <= step]
        if values:
            rows.append((title, f"{values[-1]:.4f}"))
    return rows


def _facts(found: Exported, checkpoint: Path) -> list[tuple[str, str]]:
    arch, args = found.arch, found.args
    parameters = sum(_size(shape) for parcel in found.parcels for shape in parcel.shapes)
    rows = [("parameters", f"{parameters:,}"), ("layers", f"{arch.layers}"), ("hidden size", f"{arch.hidden}")]
    rows += [("vocabulary", f"{arch.vocab:,}"), ("longest sequence", f"{arch.positions:,}")]
    number = checkpoint.name.removeprefix("iter_")
    if number.isdigit():
        rows.append(("training steps", f"{int(number):,}"))
    samples, length = getattr(args, "consumed_train_samples", 0) or 0, getattr(args, "seq_length", 0) or 0
    if samples:
        rows.append(("tokens seen", f"{samples * length:,}"))
    record = checkpoint.parent / "metrics.jsonl"
    if number.isdigit() and record.is_file():
        try:
            rows += _losses(read_metrics(record), int(number))
        except UserError:  # a record that cannot be read is no reason to end an export
            rows.append(("losses", "unknown: metrics.jsonl cannot be read"))
    return rows


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _recipe(checkpoint: Path) -> str:
    """The run's arguments, without paths of the machine; nothing where they are not there."""
    path = checkpoint.parent / _RECIPE
    try:
        asked = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return ""
    if not isinstance(asked, dict):
        return ""
    kept = {key: value for key, value in asked.items() if key not in _MACHINE}
    return f"## Recipe\n\nOf the run, for `--recipe`:\n\n```yaml\n{yaml.safe_dump(kept, sort_keys=True)}```\n\n"


def model_card(found: Exported, checkpoint: Path, job: ExportJob, tokenizer: bool) -> str:
    """The page. checkpoint: the ``iter_N`` that was read. tokenizer: whether its files are in the directory."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in _facts(found, checkpoint))
    metadata = yaml.safe_dump(_metadata(found, job, tokenizer), sort_keys=False)
    return (
        f"---\n{metadata}---\n\n# {found.arch.family} of {found.arch.layers} layers, trained with megatron_cod\n\n"
        f"{_scheme(found)}\n\n| | |\n|---|---|\n{rows}\n\n## Load\n\n{_LOAD}\n\n{_recipe(checkpoint)}"
        f"## Cite\n\n{_CITATION % __version__}\n"
    )
