"""Perplexity of a checkpoint at any layout: ``evaluate.py`` is the command.

`flags` says what can be asked, `scoring` runs the windows through Megatron's schedule, `report` tells what came out,
`run` ties these together.
"""
