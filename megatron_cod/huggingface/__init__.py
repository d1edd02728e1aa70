"""Hugging Face in and out: mapping tables per family, folding of the depth factor, streaming conversion."""
