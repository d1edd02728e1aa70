"""Fixtures of fine-tuning runs, which tests of other folders import too."""

from tests.training.fine_tuning.sft_runs import base, chats, toy  # noqa: F401
