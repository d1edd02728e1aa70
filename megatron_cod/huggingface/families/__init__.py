"""Mapping tables: one row per parameter, one table per family."""
