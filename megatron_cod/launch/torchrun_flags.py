"""torchrun's command line, checked before anything is started: the scripts in ``examples/`` make it from variables."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from typing import NoReturn

from torch.distributed import run

from megatron_cod.errors import UserError
from megatron_cod.launch.counts import whole_number
from megatron_cod.launch.network import port_number, without_brackets


def _refuse(message: str) -> NoReturn:
    raise UserError(message)


def parse(words: Sequence[str]) -> Namespace:
    """torchrun's arguments; SIGUSR1 is for the ranks too, unless the command line has other ones.

    UserError, naming the scripts' variable too, for invalid numbers.
    """
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    parser = run.get_args_parser()
    parser.error = _refuse
    args = parser.parse_args(words)
    machines = [whole_number(text, "NODES (--nnodes)") for text in args.nnodes.split(":")]
    if len(machines) > 2 or machines != sorted(machines):
        raise UserError(f"NODES (--nnodes) is {args.nnodes!r}, which is neither a number nor MIN:MAX")
    processes = args.nproc_per_node
    if not processes.isalpha():
        whole_number(processes, "PROCESSES (--nproc-per-node)")
    else:
        try:  # auto, gpu and the like
            run.determine_local_world_size(processes)
        except ValueError as error:
            raise UserError(f"PROCESSES (--nproc-per-node) is {processes!r}: {error}") from None
    return args


def endpoint(args: Namespace, default_port: int) -> tuple[str, int]:
    """Name and port of the rendezvous. UserError for an invalid port."""
    text = args.rdzv_endpoint
    if text.endswith("]") or ":" not in text:
        return without_brackets(text), default_port
    name, _, port = text.rpartition(":")
    return without_brackets(name), port_number(port, "PORT (--rdzv-endpoint)")


def rendezvous_settings(args: Namespace) -> dict[str, str]:
    """``--rdzv-conf`` as a table, with ``join_timeout`` in it. UserError where that is not seconds."""
    conf = dict(word.split("=", 1) for word in args.rdzv_conf.split(",") if "=" in word)
    conf.setdefault("join_timeout", "600")
    whole_number(conf["join_timeout"], "RENDEZVOUS_TIMEOUT (--rdzv-conf join_timeout)")
    return conf
