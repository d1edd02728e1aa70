"""The command ``megatron-cod``: ``main.py`` has the table of its subcommands, each other file is one of them.

Nothing here imports torch or Megatron before a command line is parsed, so that ``--help`` and wrong options answer at once.
"""
