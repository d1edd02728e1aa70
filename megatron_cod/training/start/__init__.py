"""From a command line to checked arguments and the model's configuration: one way for every program.

``prepare.py`` is that way, ``checks.py`` the table of what can refuse a start, ``settings.py`` our own flags as types.
"""
