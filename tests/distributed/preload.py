"""Imported once by the fork server: everything a worker needs, and no autograd, whose threads do not survive a fork."""

import warnings

from megatron_cod import cpu

warnings.simplefilter("ignore")
cpu.prepare_environment()

import megatron_cod.training.pretrain  # noqa: E402, F401
