"""Files and directories that appear at once: written under another name, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_cod.errors import UserError


@contextmanager
def replacing(path: str | Path, mark: object = "part") -> Iterator[Path]:
    """A path to write to, which becomes ``path`` at the end: a reader finds the old content or all of the new.

    mark: the end of its name, where several processes may write ``path`` at a time. A kill leaves a file of that name.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{mark}")
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: str | Path, content: str | bytes, mark: object = "part", sync: bool = False) -> None:
    """Write a file with ``replacing``. sync: its content is on the disk before its name is."""
    with replacing(path, mark) as part, part.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        if sync:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def making_directory(path: Path) -> Iterator[Path]:
    """An empty directory to fill, which becomes ``path`` at the end, unless another process has made that in between."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        try:
            part.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_writable(folder: Path, what: str, *, keep: bool = True) -> None:
    """Make a folder if it is missing. UserError, which begins with ``what``, where no file can be made in it.

    keep: whether what was made stays.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Root passes os.access on read-only mounts, so try.
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
        if not keep:
            with contextlib.suppress(OSError):  # others may have written there since
                for one in made:
                    one.rmdir()
    except OSError as error:
        raise UserError(f"{what} cannot be written: {error.strerror or error}") from None
