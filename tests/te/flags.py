"""Flags of runs on Transformer Engine."""

TE = ("--transformer-impl", "transformer_engine", "--attention-backend", "unfused")
FUSER = ("--use-transformer-engine-op-fuser",)
