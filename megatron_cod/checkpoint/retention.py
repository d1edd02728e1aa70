"""Old checkpoints and interrupted saves: what is removed from ``--save``, when, and in which order.

Two rules hold at any moment, also when the process is killed: the checkpoint that the tracker names is never touched,
and nothing is taken apart under a name that a loader takes.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_cod.checkpoint_files import (
    RELEASE,
    TRACKER,
    is_complete,
    iterations,
    newest_whole,
    read_tracker,
    write_tracker,
)
from megatron_cod.training.observers import Observer, Run

DELETING = ".deleting-"
DAMAGED = "damaged-"
UNTRACKED = "untracked-"
Say = Callable[[str], None]


def _hide(path: Path) -> Path:
    """Rename, which happens wholly or not at all, to a name that no loader takes."""
    hidden = path.with_name(DELETING + path.name)
    if hidden.exists():  # left by a run that was killed while it deleted
        shutil.rmtree(hidden)
    return path.rename(hidden)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(_hide(path))


def _repair(directory: Path, text: str | None, say: Say, told: Callable[[Path, str], None], verify: bool) -> str:
    """Have the tracker name the newest whole checkpoint, and put damaged ones aside; what the tracker says then."""
    checkpoint, damaged = newest_whole(directory, verify)
    assert checkpoint is not None
    number = str(int(checkpoint.name.removeprefix("iter_")))
    # First the tracker: a rank that looks in between finds the same checkpoint.
    if number != text:
        write_tracker(directory, number)
    if not text:
        say(f"{directory / TRACKER} was empty, a save was interrupted: it names {checkpoint.name} now")
    for path, why in damaged.items():
        aside = path.with_name(DAMAGED + path.name)
        if path.is_dir():
            if aside.exists():
                _remove(aside)
            path.rename(aside)
        say(f"WARNING: {why}; going on from {checkpoint.name}, and keeping the damaged one as {aside.name}")
        told(path, why)
    return number


def clean(
    directory: str | Path,
    say: Say,
    spare: int | None = None,
    damaged: Callable[[Path, str], None] = lambda path, why: None,
    verify: bool = False,
) -> None:
    """Put a ``--save`` directory in order before a run saves into it. For rank 0 alone, before the process group.

    - leftovers of a deletion that was interrupted go;
    - an empty tracker gets the number of the newest whole checkpoint, and so does one that names a damaged checkpoint;
      damaged ones are renamed;
    - ``iter_N`` newer than the tracker, or any where there is no tracker, go when they are incomplete. Megatron would
      write into them, and a kill then could leave old and new files together that look whole;
    - such a one that is complete is renamed: a tracker may have been set back by hand, to be set forward again.

    spare: an iteration that is about to be loaded although no tracker names it (``--ckpt-step``); the tracker then stays
    as it is. damaged: told of each damaged checkpoint and what is wrong with it. verify: look at all bytes as well.
    Raises UserError where the tracker is corrupt or no checkpoint whole, OSError where something cannot be removed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        return
    for leftover in directory.glob(f"{DELETING}*"):
        shutil.rmtree(leftover)
    text = read_tracker(directory)
    if spare is None and text not in (None, RELEASE):
        text = _repair(directory, text, say, damaged, verify)
    tracked = -1 if not text or text == RELEASE else int(text)
    for iteration, path in iterations(directory).items():
        if iteration <= tracked or iteration == spare:
            continue
        if not is_complete(path):
            _remove(path)
            say(f"removed an interrupted save: {path}")
            continue
        aside = path.with_name(UNTRACKED + path.name)
        if aside.exists():
            _remove(aside)
        path.rename(aside)
        say(f"{path} is complete but newer than {TRACKER}: not loaded, kept as {aside.name}")


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


class Retention(Observer):
    """Keeps the newest K checkpoints of a run (``--keep-last-checkpoints``). Lives on rank 0.

    Megatron has no hook after a save, and on a GPU it is not patched. So rank 0 looks, where its own code runs anyway:
    in the first forward step of each iteration, and once after training. By then Megatron has written the tracker, as
    it does last, in an asynchronous save too. A look is one ``stat``.
    """

    def __init__(self, args: Any, say: Say) -> None:
        """args: Megatron's. Takes ``save_retain_interval`` out of them: two that delete would get in each other's way."""
        self._args = args
        self._directory = Path(args.save)
        self._keep: int = args.keep_last_checkpoints
        self._every: int | None = args.save_retain_interval
        args.save_retain_interval = None
        self._say = say
        self._seen: Any = None
        self._threads: list[threading.Thread] = []

    @classmethod
    def of(cls, run: Run) -> Retention | None:
        """On rank 0, where ``--keep-last-checkpoints`` asks for it."""
        asked = run.args.save and run.args.keep_last_checkpoints and run.args.rank == 0
        return cls(run.args, run.say) if asked else None

    def step_begins(self) -> None:
        """Look whether the step before saved."""
        self.look()

    def look(self) -> None:
        """Delete the surplus when the tracker has changed.

        What cannot be deleted is said, and ends no training.
        """
        try:
            now = os.stat(self._directory / TRACKER)
        except OSError:
            return
        if (now.st_mtime_ns, now.st_size) == self._seen:
            return
        self._seen = (now.st_mtime_ns, now.st_size)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        try:
            hidden = [_hide(path) for path in surplus(self._directory, self._keep, self._every)]
        except OSError as error:
            self._say(f"WARNING: --keep-last-checkpoints cannot delete: {error}")
            return
        if hidden:
            # Deleting terabytes takes minutes on a shared file system, and the next step waits for rank 0.
            self._threads.append(threading.Thread(target=self._delete, args=(hidden,)))
            self._threads[-1].start()

    def _delete(self, hidden: list[Path]) -> None:
        for path in hidden:
            try:
                shutil.rmtree(path)
            except OSError as error:
                self._say(f"WARNING: --keep-last-checkpoints cannot delete: {error}")

    @contextmanager
    def around_training(self) -> Iterator[None]:
        """The last save comes after the last forward step. Megatron also ends with SystemExit."""
        try:
            yield
        finally:
            self._seen = None  # two saves may fall into one tick of the file system's clock
            self.look()
            for thread in self._threads:
                thread.join()
