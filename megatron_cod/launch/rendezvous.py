"""HEAD, the machine with torchrun's rendezvous: found or waited for before torchrun starts, so that what is wrong
with it is one line and not a traceback."""

from __future__ import annotations

import socket
import sys
import threading
import time
from argparse import Namespace
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, TCPStore

from megatron_cod.errors import UserError
from megatron_cod.launch.network import holder, is_here
from megatron_cod.launch.torchrun_flags import endpoint, rendezvous_settings

_DEFAULT_PORT = 29400  # torchrun's
_MACHINES = "megatron_cod/machines"
_REPORT_AFTER_SECONDS = 5.0
_ANSWER_SECONDS = 30.0


class Head:
    """HEAD as this machine sees it."""

    def __init__(self, args: Namespace) -> None:
        """args: torchrun's; their ``rdzv_conf`` is completed. UserError for an endpoint without a known name, or what is
        no port or no time."""
        self.name, self.port = endpoint(args, _DEFAULT_PORT)
        conf = rendezvous_settings(args)
        self.seconds = float(conf["join_timeout"])
        self.is_here = is_here(self.name)
        self._store: Any = None
        # The store's own time-out of 60 s would end an agent whose cable was out for longer.
        conf = {"read_timeout": f"{self.seconds:.0f}", **conf, "is_host": str(int(self.is_here))}
        args.rdzv_conf = ",".join(f"{key}={value}" for key, value in conf.items())

    def __str__(self) -> str:
        return f"{self.name}:{self.port}"

    def reach(self) -> None:
        """Open the rendezvous' store on HEAD; elsewhere wait for it. UserError when it is not available in time."""
        if not self.is_here:
            self._wait()
        opened: list[Any] = []
        opening = threading.Thread(target=self._open, args=(opened,), daemon=True)
        opening.start()
        opening.join(_ANSWER_SECONDS)
        if not opened:  # TCPStore waits forever for the answer of something that is no TCPStore
            raise UserError(f"what listens at {self} is not a rendezvous: does another program hold that port?")
        if isinstance(opened[0], Exception):
            if self.is_here and "EADDRINUSE" in str(opened[0]):
                raise UserError(f"port {self.port} of {self.name} is in use ({holder(self.port)}); give another PORT")
            raise UserError(f"the rendezvous at {self} cannot be opened: {' '.join(str(opened[0]).split())[:150]}")
        self._store = opened[0]
        self._store.append(_MACHINES, socket.gethostname() + "\n")

    def _open(self, opened: list[Any]) -> None:
        # Several stores of one process share a server: torchrun's is about to use this one.
        sharing = {"wait_for_workers": False, "multi_tenant": True, "timeout": timedelta(seconds=self.seconds)}
        try:
            opened.append(TCPStore(self.name, self.port, is_master=self.is_here, **sharing))
        except DistError as error:
            opened.append(error)

    def _wait(self) -> None:
        begun, reported = time.monotonic(), False
        while True:
            try:
                with socket.create_connection((self.name, self.port), timeout=2.0):
                    return
            except OSError as error:
                why = error.strerror or str(error)
            waited = time.monotonic() - begun
            if waited > self.seconds:
                raise UserError(
                    f"HEAD did not answer at {self} within {self.seconds:.0f} s ({why}): does this script run there, and "
                    f"does a firewall leave the port open?"
                )
            if waited > _REPORT_AFTER_SECONDS and not reported:
                print(f"waiting up to {self.seconds:.0f} s for HEAD at {self}: {why}", file=sys.stderr, flush=True)
                reported = True
            time.sleep(0.5)

    def machines(self) -> list[str]:
        """The machines that have come since HEAD began."""
        return sorted(set(self._store.get(_MACHINES).decode().split()))
