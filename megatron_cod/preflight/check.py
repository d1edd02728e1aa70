"""A check, and what it is given."""

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
    """One process of the preflight, and its inputs."""

    meeting: Meeting
    settings: Namespace
    """The tool's flags."""
    head_address: str
    shared: dict[str, Any] = field(default_factory=dict)
    """Data that HEAD sent to all: ``service`` and ``secret`` of its clock, ``port_error``, ``backend``, ``job``."""
    marks: list[Path] = field(default_factory=list)
    """Files to remove at the end."""

    @property
    def job(self) -> dict[str, Any]:
        """What the launch would be (``job.py``); empty where no flags of a launch were given."""
        return self.shared.get("job") or {}


@dataclass(frozen=True)
class Check:
    """``collect`` on every machine, then ``compare`` of the answers on HEAD."""

    name: str
    seconds: float
    """Time-out of the look."""
    collect: Callable[[Here], Any]
    """UserError or OSError: the machine fails the check, with that line."""
    compare: Callable[[Answers, Here], Outcome]
    everyone: bool = False
    """Whether each process looks, not only the first of each machine."""
