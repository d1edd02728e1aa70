"""What can happen to a run, and what it does then: signals, time limits, hangs, values that are not finite, loss spikes,
damaged checkpoints, a rewind. ``handling.py`` ties them to a run; each event is a line of ``events.jsonl``.
"""
