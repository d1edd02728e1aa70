"""Verification of the output before it gets its name: complete, and computing the same as its source."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from megatron_cod.common.lists import listed
from megatron_cod.errors import UserError, one_line

MegatronLogits = Callable[[Path, Tensor], Tensor]
"""(checkpoint, tokens [b, s]) -> logits [b, s, v] of Megatron's own model, in fp32 on the CPU. UserError where it is not
built here: another machine's flags, no recipe beside the checkpoint."""

TOLERANCE = 1e-4
"""Largest difference of the logits, as a share of the largest logit."""
_BYTES = 8
"""A parameter in fp32, and again while it is loaded; the models to compare are in memory one after the other."""
_BESIDE = 1 << 30
_TOKENS = 200


class NotTheSame(UserError):
    """The result does not compute what it was made from, or does not load whole."""


def probe_tokens(vocab: int, positions: int) -> Tensor:
    """[1, s] random tokens, the same ones each time."""
    return torch.randint(0, vocab, (1, min(positions, _TOKENS)), generator=torch.Generator().manual_seed(20))


def too_little_memory(elements: int) -> str | None:
    """Why a model of so many parameters is not computed on this machine; None where it fits."""
    needed, free = _BYTES * elements + _BESIDE, _available()
    if needed <= free:
        return None
    return f"it takes {needed / 1e9:.1f} GB of memory ({_BYTES} bytes a parameter), {free / 1e9:.1f} GB are free"


def _available() -> int:
    """Free memory of the machine, or of this process's control group where that is less."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)


def logits_or_reason(megatron: MegatronLogits, checkpoint: Path, tokens: Tensor) -> Tensor | str:
    """Megatron's logits, or why this machine does not compute them, which says nothing against the result.

    Only what a run refuses counts, and memory: any other exception is a fault, which keeps its traceback.
    """
    try:
        return megatron(checkpoint, tokens)
    except UserError as error:
        return one_line(error)[:200]
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return f"out of memory: {one_line(error)[:180]}"


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """On a device torch has a class for it, on the host only a text."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def named(names: Iterable[str], most: int = 4) -> str:
    """Names in one short line."""
    return listed(sorted(names), most)


def _is_predicted(name: str, config: Any) -> bool:
    """Whether a tensor is of a layer of multi-token prediction, which no causal model of transformers reads."""
    count = getattr(config, "num_nextn_predict_layers", None) or 0
    return name.startswith(tuple(f"model.layers.{config.num_hidden_layers + number}." for number in range(count)))


def check_whole(report: Mapping[str, Any], what: object, config: Any, left_over: bool = True) -> None:
    """UserError for transformers' report of tensors that are missing, misshapen or, with ``left_over``, not used.

    config: transformers' own of the model.
    """
    kinds = ("missing_keys", "mismatched_keys", *(["unexpected_keys"] if left_over else []))
    faults = {kind: report.get(kind) for kind in kinds}
    if left_over:
        unused = report.get("unexpected_keys") or ()
        faults["unexpected_keys"] = [found for found in unused if not _is_predicted(_name(found), config)]
    reasons = [f"{kind.split('_')[0]}: {named(map(_name, found))}" for kind, found in faults.items() if found]
    reasons += [str(one) for one in report.get("error_msgs") or ()]
    if reasons:
        raise NotTheSame(f"{what} does not load whole in transformers ({'; '.join(reasons)})")


def _name(found: Any) -> str:
    return found[0] if isinstance(found, tuple) else str(found)


def loaded_whole(folder: Path, dtype: torch.dtype = torch.float32, left_over: bool = True) -> Any:
    """The model in a Hugging Face directory, in eval mode; UserError for what ``check_whole`` finds."""
    from transformers import AutoModelForCausalLM

    with quiet():
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, local_files_only=True
            )
        except Exception as error:  # transformers may raise anything: the directory does not load
            raise NotTheSame(f"{folder.name} does not load in transformers: {str(error)[:300]}") from error
    check_whole(report, folder.name, model.config, left_over)
    return model.eval()


def model_of(config: Mapping[str, Any], state: dict[str, Tensor], what: object) -> Any:
    """A stock model of these tensors, in fp32, for any type in files."""
    import transformers

    made = transformers.AutoConfig.for_model(**config)
    model_class = getattr(transformers, config["architectures"][0])
    with quiet():
        model, report = model_class.from_pretrained(
            None, config=made, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    check_whole(report, what, made)
    return model.eval()


class quiet:
    """Without transformers' reports and bars: our line reports what is wrong."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level, self._bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)
        if self._bars:
            logging.enable_progress_bar()


@torch.no_grad()
def logits_of(model: Any, tokens: Tensor) -> Tensor:
    """[b, s, v] in fp32."""
    found = model(tokens, use_cache=False).logits.float()
    gc.collect()
    return found


def compare(expected: Tensor, found: Tensor, what: str) -> str:
    """A line for the log; UserError where the logits [b, s, v] differ by more than ``TOLERANCE``."""
    width = min(expected.shape[-1], found.shape[-1])
    expected, found = expected[..., :width], found[..., :width]
    largest = float(expected.abs().max())
    apart = float((expected - found).abs().max())
    share = apart / largest if largest else apart
    line = f"{what}: the logits of {expected.shape[1]} random tokens differ by {share:.1e} of the largest"
    if not share <= TOLERANCE:
        raise NotTheSame(f"{line}, more than {TOLERANCE:g}: another function, so that it is not kept")
    return line
