"""Imported once by the fork server: everything a worker needs, and no autograd, whose threads do not survive a fork."""

import megatron_cod.training.run  # noqa: F401
