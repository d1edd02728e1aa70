"""Norms and core attention that the layer specs are built from, one file per backend."""
