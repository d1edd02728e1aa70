"""How a command-line tool ends: user errors are one line on stderr, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


def run_tool(main: Callable[[], None]) -> NoReturn:
    """Run `main` and exit: 0 when it returns, 2 for ValueError, OSError, a device out of memory, 130 when interrupted.

    Any other exception is a bug of ours and keeps its traceback.
    """
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        _fail(text)
    except ValueError as error:
        _fail(str(error))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which may not be imported
            raise
        _fail(f"the device is out of memory: {error}")
    sys.exit(0)


def _fail(text: str) -> NoReturn:
    print("error: " + " ".join(text.split()), file=sys.stderr)
    sys.exit(2)
