"""What a run keeps in ``--save`` and takes from ``--load``: which checkpoint, whether it is whole, whether it fits the run.

``selection.py`` finds the checkpoint, ``directory.py`` and ``checksums.py`` whether it is complete, ``compatibility.py``
compares it with the run; the other files hold one comparison, one file format or one task each.
"""
