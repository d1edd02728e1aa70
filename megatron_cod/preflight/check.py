"""What a check is, and what it has at hand."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_cod.preflight.findings import Outcome
from megatron_cod.preflight.member_channel import Meeting, Member

Answers = Mapping[Member, Any]
"""What each process that was asked has answered, as plain values."""


@dataclass
class Here:
    """One process of the preflight, and what it was told."""

    meeting: Meeting
    settings: Namespace
    """The tool's flags."""
    head_address: str
    shared: dict[str, Any] = field(default_factory=dict)
    """What HEAD told all: ``service`` and ``secret`` of its clock, ``port_error``, ``backend``, ``job``."""
    marks: list[Path] = field(default_factory=list)
    """Files to remove at the end."""

    @property
    def job(self) -> dict[str, Any]:
        """What the launch would be (``job.py``); empty where no flags of a launch were given."""
        return self.shared.get("job") or {}


@dataclass(frozen=True)
class Check:
    """A look on every machine, then a judgement on HEAD of what was seen."""

    name: str
    seconds: float
    """Time-out of the look."""
    collect: Callable[[Here], Any]
    """UserError or OSError: the machine fails the check, with that line."""
    compare: Callable[[Answers, Here], Outcome]
    everyone: bool = False
    """Whether each process looks, not only the first of each machine."""
