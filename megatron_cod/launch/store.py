"""The key-value store that the launcher, or rank 0, keeps, for threads beside the training."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore


def store_connection(timeout: float) -> Callable[[], Any]:
    """Connects to the store, with so many seconds for an answer. Collective over all ranks.

    The keys get a prefix that is drawn once a start: torchrun may keep one store over its restarts, and counts them on each
    machine by itself.
    """
    token = [secrets.token_hex(8)]
    torch.distributed.broadcast_object_list(token, 0)

    def connect() -> Any:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))
        return PrefixStore(token[0], store)

    return connect
