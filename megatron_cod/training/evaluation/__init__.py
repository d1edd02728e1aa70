"""Perplexity of a checkpoint at any layout: ``evaluate.py`` is the command.

`flags` has the options, `scoring` runs the windows through Megatron's schedule, `report` prints the result,
`run` ties these together.
"""
