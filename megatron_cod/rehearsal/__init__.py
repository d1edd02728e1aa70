"""Rehearsal of a launch: its plan from the arguments, and any of its ranks in one process."""
