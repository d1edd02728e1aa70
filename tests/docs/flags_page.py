"""Write docs/flags.md, every flag of ours and every metric: ``python -m tests.docs.flags_page``."""

import argparse

from megatron_cod.training.evaluation.flags import PROGRAM
from megatron_cod.training.fine_tuning.task import task
from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.pretraining import TASK
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "flags.md"
HEAD = """\
# Flags and metrics

Generated from the parsers (`python -m tests.docs.flags_page`). Any flag of Megatron-Core 0.19.2 can be given as well;
`megatron-cod train --help-megatron` prints them. Keys of recipes are these names without the leading dashes.
"""
METRICS = {
    "lm loss": "training loss of a step, nats per token",
    "lm loss validation": "validation loss; `lm loss test` of the test set",
    "lm loss validation ppl": "exp of it",
    "bits per byte validation": "validation loss in bits per byte of text, where the data records its bytes",
    "learning-rate": "learning rate of the step",
    "grad-norm": "norm of the gradient before clipping",
    "batch-size": "samples in a step",
    "loss-scale": "scale of the loss (fp16)",
    "num-zeros": "zeros in the gradient (`--log-num-zeros-in-grad`)",
    "params-norm": "norm of the weights (`--log-params-norm`)",
    "parameters": "parameters of the model",
    "iteration-time": "seconds of a step",
    "samples vs steps": "samples seen",
    "tokens seen": "tokens of all steps so far",
    "tokens per second": "of all processes",
    "tokens per second and GPU": "of one process",
    "stream variance/layer NNN": "variance of the residual stream after global layer NNN, at a validation",
    "depth/MEASURE/layer NNN": "depth monitor (`--depth-monitor-interval`), for each global layer",
}
"""Name in ``metrics.jsonl`` -> what it is. ``X vs samples`` is X by samples instead of steps."""


def programs() -> dict[str, argparse.ArgumentParser]:
    return {"train": build_parser(TASK), "sft": build_parser(task()), "evaluate": build_parser(PROGRAM)}


def groups(parser: argparse.ArgumentParser) -> dict[str, list[argparse.Action]]:
    """Our groups of flags; Megatron's are the others."""
    own = [group for group in parser._action_groups if group.title in ("megatron_cod", "the program's flags")]
    own += [group for group in parser._action_groups if (group.title or "").startswith("when something goes wrong")]
    return {str(group.title): list(group._group_actions) for group in own}


def row(action: argparse.Action) -> str:
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
    values = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "")
    values = " ".join(values) if isinstance(values, tuple) else values
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%").replace("|", "\\|")
    return f"| {flags}{f' `{values}`' if values and action.nargs != 0 else ''} | {text} |"


def page() -> str:
    found = programs()
    text = HEAD
    common = groups(found["train"])
    sections = [("All training commands", common["megatron_cod"])]
    sections += [(title.capitalize(), actions) for title, actions in common.items() if title.startswith("when")]
    sections += [
        (f"`megatron-cod {name}`", groups(parser).get("the program's flags", [])) for name, parser in found.items()
    ]
    for title, actions in sections:
        if actions:
            text += f"\n## {title.split(' (docs/')[0]}\n\n| flag | |\n|---|---|\n" + "\n".join(map(row, actions)) + "\n"
    rows = "\n".join(f"| `{name}` | {what} |" for name, what in METRICS.items())
    return (
        f"{text}\n## Metrics\n\nNames in `SAVE/metrics.jsonl`, TensorBoard and W&B.\n\n| name | |\n|---|---|\n{rows}\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page())
