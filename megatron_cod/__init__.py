"""Megatron-Core pretraining with LayerNorm Scaling (arXiv 2502.05795), the cure for the Curse of Depth."""

__version__ = "0.1.0"
