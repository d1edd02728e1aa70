"""Supervised fine-tuning on conversations: its task, flags and datasets. ``sft.py`` is the command."""
