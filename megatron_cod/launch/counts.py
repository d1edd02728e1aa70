"""Whole numbers that a user gives."""

from megatron_cod.errors import UserError


def whole_number(text: str, what: str, least: int = 1, most: int | None = None) -> int:
    """The number; UserError, naming what it is for, for any text that is not a number within these bounds."""
    if not (text.isascii() and text.isdigit() and least <= int(text) and (most is None or int(text) <= most)):
        wanted = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
        raise UserError(f"{what} is {text!r}, which is not {wanted}")
    return int(text)
