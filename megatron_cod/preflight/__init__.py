"""Looks at the machines of a job before it starts: one check a file, a table of them in ``table.py``."""
