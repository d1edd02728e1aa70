"""The flag ``--import MODULE`` of programs whose other flags do not depend on the schemes that it registers."""

import argparse
from typing import Any


class _Import(argparse.Action):
    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, _option: str | None = None) -> None:
        # Not above: the table takes torch and Megatron, and --help is to answer at once.
        from megatron_cod.schemes.table import import_modules

        import_modules(values)
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *values])


def add_import_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag; its modules are imported as soon as it is read, and kept in ``import_modules``."""
    parser.add_argument(
        "--import",
        dest="import_modules",
        action=_Import,
        nargs="+",
        default=[],
        metavar="MODULE",
        help="import Python modules that register norm schemes of your own (docs/schemes.md)",
    )
