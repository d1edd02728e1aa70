"""Parsers of the commands: a wrong command line is one line, with the flag that is nearest."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from megatron_cod.errors import UserError, did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse's, which keeps the lines of its description, takes no abbreviations and raises UserError."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Raise UserError: ``run_tool`` prints it."""
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        hint = did_you_mean(unknown[1], self._option_string_actions) if unknown else ""
        raise UserError(f"{message}{hint} (--help lists the flags)")
