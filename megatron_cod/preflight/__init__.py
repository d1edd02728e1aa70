"""Checks the machines of a job before it starts: one check per file, listed in ``table.py``."""
