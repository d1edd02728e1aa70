"""Removal of old checkpoints and interrupted saves from ``--save``.

Two rules hold at any moment, also when the process is killed: the checkpoint that the tracker names is never touched,
and nothing is taken apart under a name that a loader takes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from megatron_cod.checkpoint.directory import (
    RELEASE,
    TRACKER,
    is_complete,
    iterations,
    newest_whole,
    read_tracker,
    write_tracker,
)

DELETING = ".deleting-"
DAMAGED = "damaged-"
UNTRACKED = "untracked-"
Log = Callable[[str], None]


def hide(path: Path) -> Path:
    """Rename, which happens wholly or not at all, to a name that no loader takes."""
    hidden = path.with_name(DELETING + path.name)
    if hidden.exists():  # left by a run that was killed while it deleted
        shutil.rmtree(hidden)
    return path.rename(hidden)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(hide(path))


def _repair(directory: Path, text: str | None, log: Log, on_damaged: Callable[[Path, str], None], verify: bool) -> str:
    """Have the tracker name the newest whole checkpoint, and rename damaged ones; the tracker's content then."""
    checkpoint, damaged = newest_whole(directory, verify)
    assert checkpoint is not None
    number = str(int(checkpoint.name.removeprefix("iter_")))
    # First the tracker: a rank that reads it in between finds the same checkpoint.
    if number != text:
        write_tracker(directory, number)
    if not text:
        log(f"{directory / TRACKER} was empty, a save was interrupted: it names {checkpoint.name} now")
    for path, why in damaged.items():
        aside = path.with_name(DAMAGED + path.name)
        if path.is_dir():
            if aside.exists():
                _remove(aside)
            path.rename(aside)
        log(f"WARNING: {why}; resuming from {checkpoint.name}, and keeping the damaged one as {aside.name}")
        on_damaged(path, why)
    return number


def clean(
    directory: str | Path,
    log: Log,
    spare: int | None = None,
    damaged: Callable[[Path, str], None] = lambda path, why: None,
    verify: bool = False,
) -> None:
    """Clean a ``--save`` directory before a run saves into it. For rank 0 alone, before the process group.

    - leftovers of a deletion that was interrupted go;
    - an empty tracker gets the number of the newest whole checkpoint, and so does one that names a damaged checkpoint;
      damaged ones are renamed;
    - ``iter_N`` newer than the tracker, or any where there is no tracker, go when they are incomplete. Megatron would
      write into them, and a kill then could leave old and new files together that look whole;
    - such a one that is complete is renamed: a tracker may have been set back by hand, to be set forward again.

    spare: an iteration that is about to be loaded although no tracker names it (``--ckpt-step``); the tracker then stays
    as it is. damaged: called with each damaged checkpoint and the reason. verify: check all bytes too.
    Raises UserError where the tracker is corrupt or no checkpoint whole, OSError where something cannot be removed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        return
    for leftover in directory.glob(f"{DELETING}*"):
        shutil.rmtree(leftover)
    text = read_tracker(directory)
    if spare is None and text not in (None, RELEASE):
        text = _repair(directory, text, log, damaged, verify)
    tracked = -1 if not text or text == RELEASE else int(text)
    for iteration, path in iterations(directory).items():
        if iteration <= tracked or iteration == spare:
            continue
        if not is_complete(path):
            _remove(path)
            log(f"removed an interrupted save: {path}")
            continue
        aside = path.with_name(UNTRACKED + path.name)
        if aside.exists():
            _remove(aside)
        path.rename(aside)
        log(f"{path} is complete but newer than {TRACKER}: not loaded, kept as {aside.name}")


def surplus(directory: str | Path, keep: int, every: int | None = None) -> list[Path]:
    """The checkpoints beyond the newest ``keep``, oldest first: none newer than the tracker or named by it.

    every: multiples of it are kept as well (Megatron's ``--save-retain-interval``). Links are left alone, as there.
    Without a readable tracker there is no surplus.
    """
    assert keep >= 1
    try:
        text = read_tracker(directory)
    except ValueError:
        return []
    if not text or text == RELEASE:
        return []
    tracked = int(text)
    finished = {iteration: path for iteration, path in iterations(directory).items() if iteration <= tracked}
    if tracked not in finished:
        return []
    return [
        path
        for iteration, path in list(finished.items())[:-keep]
        if not (every and iteration % every == 0) and not path.is_symlink()
    ]
