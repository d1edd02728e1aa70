"""Depth diagnostics: what each block of a model does to the residual stream, and what is lost without it."""
