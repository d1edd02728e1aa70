"""``events.jsonl`` beside the checkpoints: one line per event of a run."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from megatron_cod import console
from megatron_cod.launch.scheduler import this_host

EVENTS = "events.jsonl"


class Events:
    """Appends to ``SAVE/events.jsonl``; without ``--save`` nowhere."""

    def __init__(self, save: str | None, rank: int) -> None:
        self._path = Path(save) / EVENTS if save else None
        self._rank = rank

    def add(self, event: str, **facts: Any) -> None:
        """An event known to all ranks: one line, {"time", "event", ...}, written by rank 0."""
        if self._rank == 0:
            self.add_here(event, **facts)

    def add_first(self, event: str, **facts: Any) -> None:
        """An event written by the first rank that meets it: the others fail because of that one."""
        if self._path is None:
            return
        since = [one.get("event") for one in reversed(read_events(self._path.parent))]
        if event not in since[: since.index("start") if "start" in since else None]:
            self.add_here(event, rank=self._rank, host=this_host(), **facts)

    def add_here(self, event: str, **facts: Any) -> None:
        """An event known to this rank only."""
        if self._path is None:
            return
        line = _line(event, facts)
        try:
            _append(self._path, line)
        except OSError as error:  # on a full disk what happened to the run matters more than the note of it
            console.print_error(f"WARNING: {self._path} cannot be written ({error}): {line}")


def record(save: Path, event: str, **facts: Any) -> None:
    """Write an event that must be recorded: OSError if it cannot be written."""
    _append(save / EVENTS, _line(event, facts))


def _line(event: str, facts: dict[str, Any]) -> str:
    return json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **facts})


def _append(path: Path, line: str) -> None:
    """A short line at the end of a file goes there whole, whoever else writes."""
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        torn = end > 0 and (file.seek(end - 1), file.read(1))[1] != b"\n"  # by a kill, or a disk that was full
        file.write((torn * "\n" + line + "\n").encode())


def read_events(save: Path) -> list[dict[str, Any]]:
    """The events of a run, a torn last line omitted; none where there is no file."""
    path = save / EVENTS
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
