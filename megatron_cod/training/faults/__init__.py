"""What can happen to a run, and what it does then: signals, time limits, hangs, values that are not finite, loss spikes,
damaged checkpoints, a rewind. Each handler is an ``Observer``, a row of ``run.OBSERVERS``; each event is a line of
``events.jsonl``.
"""
