"""Datasets on disk: Megatron's token files, their manifest, and what is checked before they are read."""
