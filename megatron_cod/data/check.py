"""Kept for programs that import it from here: ``datasets/check.py``."""

from megatron_cod.data.datasets.check import check_prefix

__all__ = ["check_prefix"]
