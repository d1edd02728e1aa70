"""Checks on checkpoint directories before a distributed start, and the resolved arguments kept beside them."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE

from megatron_cod import cpu

TRACKER = "latest_checkpointed_iteration.txt"
RESOLVED = "resolved_args.yaml"

# What must agree for the weights to fit; Megatron asserts some of these later, on every rank and less clearly.
_SHAPE_ARGUMENTS = ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size", "padded_vocab_size")


def latest_checkpoint(directory: str | Path) -> Path | None:
    """The newest checkpoint below ``directory``, or None where none was ever finished.

    Raises ValueError when the tracker file is unreadable or names a checkpoint that is not there.
    """
    tracker = Path(directory) / TRACKER
    if not tracker.is_file():
        return None
    text = tracker.read_text(errors="replace").strip()
    if text != "release" and not text.isdigit():
        raise ValueError(f"{tracker} is corrupt: expected an iteration number, found {text[:40]!r}")
    checkpoint = Path(directory) / ("release" if text == "release" else f"iter_{int(text):07d}")
    if not checkpoint.is_dir():
        raise ValueError(f"{tracker} names iteration {text}, but {checkpoint} does not exist; correct the tracker")
    return checkpoint


def check_files(checkpoint: Path) -> None:
    """ValueError when a torch_dist checkpoint lacks a file, or a file is shorter than its index says."""
    from torch.distributed.checkpoint import FileSystemReader

    if not (checkpoint / "metadata.json").is_file():
        raise ValueError(f"checkpoint {checkpoint} is corrupt: metadata.json is missing")
    if not (checkpoint / ".metadata").is_file():
        return  # not the torch_dist format: Megatron reads it its own way
    try:
        stored = FileSystemReader(checkpoint).read_metadata().storage_data or {}
    except Exception as error:  # whatever a damaged pickle raises, it is one thing to the user
        raise ValueError(f"checkpoint {checkpoint} is corrupt: .metadata cannot be read ({error})") from None
    needed: dict[str, int] = {}
    for piece in stored.values():
        needed[piece.relative_path] = max(needed.get(piece.relative_path, 0), piece.offset + piece.length)
    for name, size in sorted(needed.items()):
        path = checkpoint / name
        found = path.stat().st_size if path.is_file() else None
        if found is None or found < size:
            state = "is missing" if found is None else f"has {found} bytes of {size}"
            raise ValueError(f"checkpoint {checkpoint} is corrupt: {name} {state}; load an older one")


def saved_arguments(checkpoint: Path) -> argparse.Namespace | None:
    """The arguments a checkpoint was saved with; None when it holds none. ValueError when they cannot be read."""
    from megatron.core import dist_checkpointing

    try:
        return dist_checkpointing.load_common_state_dict(str(checkpoint)).get("args")
    except Exception as error:
        raise ValueError(f"checkpoint {checkpoint} is corrupt: {' '.join(str(error).split())[:200]}") from None


def check_load(args: Any, override_scheme: bool) -> str | None:
    """Check the checkpoint that ``--load`` would take, before any process group exists.

    Raises ValueError when it is damaged, of another shape, or of another norm scheme (whose tensors have the same
    names and shapes, so that nothing else would notice). A checkpoint without a scheme is stock Megatron's: pre_ln.
    Returns a line for the log, or None when there is nothing to load.
    """
    checkpoint = latest_checkpoint(args.load) if args.load else None
    if checkpoint is None:
        return f"--load {args.load}: no checkpoint there, starting from scratch" if args.load else None
    if args.use_distributed_optimizer and cpu.has_cuda() and not HAVE_APEX_OR_TE:
        # Megatron 0.19.2 there: an assertion, and where that is passed, AdamW steps that count up once a parameter.
        raise ValueError(
            "Megatron cannot resume --use-distributed-optimizer with torch's AdamW: install Transformer Engine or Apex"
        )
    check_files(checkpoint)
    saved = saved_arguments(checkpoint)
    if saved is None:
        return f"checkpoint {checkpoint} records no arguments: its norm scheme cannot be checked"
    for name in _SHAPE_ARGUMENTS:
        theirs, ours = getattr(saved, name, None), getattr(args, name, None)
        if theirs is not None and ours is not None and theirs != ours:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"checkpoint {checkpoint} was trained with {flag} {theirs}, this run asks for {ours}")
    scheme = getattr(saved, "norm_scheme", "pre_ln")
    if scheme == args.norm_scheme:
        return None
    line = f"checkpoint {checkpoint} was trained with --norm-scheme {scheme}, this run asks for {args.norm_scheme}"
    if not override_scheme:
        raise ValueError(f"{line}; use {scheme}, or --override-scheme-check if you mean it")
    return f"WARNING: {line}; loading it all the same (--override-scheme-check)"


def check_save(save: str | None, load: str | None) -> None:
    """ValueError when ``--save`` cannot be written, or holds another run's checkpoints that would be overwritten."""
    if not save:
        return
    directory = Path(save)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Root passes os.access on read-only mounts, so try.
        probe = directory / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--save {save} cannot be written: {error.strerror or error}") from None
    same = load is not None and Path(load).resolve() == directory.resolve()
    if not same and latest_checkpoint(directory) is not None:
        raise ValueError(
            f"--save {save} already holds checkpoints; resume them with --load {save}, or save somewhere else"
        )


@contextmanager
def readable(load: str | None) -> Iterator[None]:
    """Turn torch's report of a checkpoint that cannot be read, one traceback a rank, into a ValueError of one line."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        causes = [str(cause) for cause, _ in error.failures.values()]
        first = " ".join((causes or [str(error)])[0].split())
        raise ValueError(f"checkpoint in {load} is corrupt or cannot be read: {first[:200]}") from None


def write_resolved(save: str, text: str) -> None:
    """Keep the resolved arguments in the checkpoint directory; earlier, different ones are kept under a number."""
    target = Path(save) / RESOLVED
    if target.is_file():
        old = target.read_text()
        if old == text:
            return
        number = 1
        while (kept := target.with_suffix(f".{number}.yaml")).exists():
            number += 1
        target.rename(kept)
    target.write_text(text)
