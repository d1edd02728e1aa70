"""``--save`` without ``--save-interval``."""

from __future__ import annotations

from collections.abc import Callable

from megatron_cod.args import MegatronArgs

DEFAULT_STEPS = 1000
"""That of the launch scripts."""


def set_save_interval(raw: MegatronArgs, log: Callable[[str], None]) -> None:
    """Set and log the interval where none is given; Megatron saves at the end of a run too. raw: the plain parse."""
    if not raw.save or raw.save_interval is not None or raw.skip_train:
        return
    raw.save_interval = raw.save_retain_interval or DEFAULT_STEPS  # what is retained is a multiple of what is saved
    log(f"no --save-interval: saving every {raw.save_interval} steps and at the end")
