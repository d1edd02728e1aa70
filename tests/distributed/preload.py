"""Imported once by the fork server: everything a worker needs, and no autograd, whose threads do not survive a fork."""

from tests.te import emulation

if emulation.is_asked_for():
    emulation.install()

import megatron_cod.training.run  # noqa: F401
