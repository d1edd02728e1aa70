"""What lies in a checkpoint directory: Megatron's tracker file, and which ``iter_NNNNNNN`` are whole."""

import os
import re
from pathlib import Path

from megatron_cod.checkpoint import checksums
from megatron_cod.checkpoint.tensors import damaged_file
from megatron_cod.common.files import write_whole
from megatron_cod.errors import UserError

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
_ITERATION = re.compile(r"iter_(\d{7,})")


def same_directory(one: str | None, other: str | None) -> bool:
    """Whether both are given and name one directory."""
    return bool(one and other) and Path(str(one)).resolve() == Path(str(other)).resolve()


def iteration_name(iteration: int) -> str:
    """Megatron's directory name for a checkpoint."""
    return f"iter_{iteration:07d}"


def iterations(directory: str | Path) -> dict[int, Path]:
    """Iteration -> its directory, oldest first. Only names that Megatron itself would give."""
    found = {}
    for path in Path(directory).iterdir() if Path(directory).is_dir() else ():
        match = _ITERATION.fullmatch(path.name)
        if match and path.is_dir() and path.name == iteration_name(int(match[1])):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def read_tracker(directory: str | Path) -> str | None:
    """The content of the tracker file: digits, 'release', '' for one that a kill left empty; None without the file.

    Raises UserError for anything else. Megatron opens the file for writing and then writes it, so that a kill between
    the two leaves it empty; after a power failure some file systems give zero bytes.
    """
    tracker = Path(directory) / TRACKER
    if not tracker.is_file():
        return None
    text = tracker.read_bytes().decode(errors="replace").strip(" \t\r\n\0")
    if text and text != RELEASE and not (text.isascii() and text.isdigit()):
        raise UserError(f"{tracker} is corrupt: expected an iteration number, found {text[:40]!r}")
    return text


def write_tracker(directory: str | Path, text: str) -> None:
    """Write the tracker file in one step: a reader sees the old one or the new one."""
    write_whole(Path(directory) / TRACKER, text, os.getpid())


def latest_checkpoint(directory: str | Path) -> Path | None:
    """The checkpoint that the tracker names, or None where none was ever finished.

    Raises UserError when the tracker is empty or unreadable, or names a checkpoint that is not there. For directories
    that are only read; a run's own is cleaned (``newest_whole``).
    """
    text = read_tracker(directory)
    if text is None:
        return None
    tracker = Path(directory) / TRACKER
    if not text:
        whole = [number for number, path in iterations(directory).items() if is_complete(path)]
        if not whole:
            raise UserError(f"{tracker} is empty and no checkpoint is complete; delete it to start from scratch")
        raise UserError(
            f"{tracker} is empty, a save was interrupted; the newest complete checkpoint is {whole[-1]}: "
            f"write {whole[-1]} into the file to load it"
        )
    checkpoint = Path(directory) / (RELEASE if text == RELEASE else iteration_name(int(text)))
    if not checkpoint.is_dir():
        raise UserError(f"{tracker} names iteration {text}, but {checkpoint} does not exist; correct the tracker")
    return checkpoint


def newest_whole(directory: str | Path, verify: bool = False) -> tuple[Path | None, dict[Path, str]]:
    """Where a run resumes in its own ``--save``: the tracked checkpoint, or the newest whole one before it.

    Also the damaged ones that were passed over, newest first, with what is wrong with each. (None, {}) where none was ever
    finished. Raises UserError where there are some and none is whole: a start from scratch would be no answer.
    verify: bytes that have changed are damage too, which takes reading them all.
    """
    text = read_tracker(directory)
    if text is None or text == RELEASE:
        return (None if text is None else Path(directory) / RELEASE), {}
    found = {number: path for number, path in iterations(directory).items() if not text or number <= int(text)}
    if text:
        found[int(text)] = Path(directory) / iteration_name(int(text))
    damaged: dict[Path, str] = {}
    for _, path in sorted(found.items(), reverse=True):
        why = damage(path, verify)
        if why is None:
            # A save interrupted before the tracker could name it damages nothing.
            return path, damaged if text else {}
        damaged[path] = why
    first = next(iter(damaged.items()), (Path(directory), f"{TRACKER} is empty"))
    raise UserError(
        f"no checkpoint in {directory} is whole ({first[0].name}: {first[1]}); move it away to start from scratch"
    )


def damage(checkpoint: Path, verify: bool = False) -> str | None:
    """What is wrong with a checkpoint, on one line; None where it can be loaded."""
    if not checkpoint.is_dir():
        return f"{checkpoint} does not exist"
    try:
        check_files(checkpoint, verify)
    except ValueError as error:
        return str(error)
    # Written last: empty, it means that a save did not end.
    last = checkpoint / (".metadata" if is_dcp(checkpoint) else "metadata.json")
    return None if last.stat().st_size else f"{last} is empty"


def is_dcp(checkpoint: Path) -> bool:
    """Whether a checkpoint is of ``--ckpt-format torch_dcp``: torch's own index, written last, which lists the arguments.

    A torch_dist checkpoint whose save was interrupted has such an index too, without them.
    """
    from torch.distributed.checkpoint import FileSystemReader

    if (checkpoint / "metadata.json").exists() or not (checkpoint / ".metadata").is_file():
        return False
    try:
        return "args" in FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    except Exception:  # a damaged pickle may raise anything
        return False


def check_files(checkpoint: Path, verify: bool = False) -> None:
    """UserError when a torch_dist or torch_dcp checkpoint lacks a file, or a file is shorter than its index says.

    verify: or holds bytes that have changed.
    """
    from torch.distributed.checkpoint import FileSystemReader

    if any(checkpoint.glob("mp_rank_*")):
        raise UserError(
            f"checkpoint {checkpoint} is in Megatron's old format torch, which is not supported; Megatron-LM converts it "
            "with --ckpt-convert-format torch_dist"
        )
    if not (checkpoint / "metadata.json").is_file() and not is_dcp(checkpoint):
        raise UserError(f"checkpoint {checkpoint} is corrupt: metadata.json is missing")
    if not (checkpoint / ".metadata").is_file():
        return  # not the torch_dist format: Megatron reads it its own way
    try:
        stored = FileSystemReader(checkpoint).read_metadata().storage_data or {}
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"checkpoint {checkpoint} is corrupt: .metadata cannot be read ({error})") from None
    damage = damaged_file(checkpoint, stored) or (checksums.changed(checkpoint, stored) if verify else None)
    if damage:
        raise UserError(f"checkpoint {checkpoint} is corrupt: {damage}; load an older one")


def is_complete(checkpoint: Path) -> bool:
    """Whether there is no ``damage``."""
    return damage(checkpoint) is None
