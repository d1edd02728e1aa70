"""Run a command on emulated CUDA devices: ``python -m tests.gpu_emulation COMMAND ...``.

The runtime is built first where it is not there yet (ten seconds; kept beside the environment's packages). Where it
cannot be built the command runs all the same, and tests of the CUDA path skip with the reason.
"""

import os
import sys
from pathlib import Path

from tests.gpu_emulation.build import built, environment, missing

SWITCH = "MEGATRON_COD_CUDA"
CACHE = Path(sys.prefix) / "gpu_emulation"


def main() -> None:
    command = sys.argv[1:]
    if not command:
        sys.exit(__doc__)
    reason = missing()
    if reason is None:
        os.environ |= environment(built(CACHE), os.environ.get("FAKECUDA", "numerics,report"))
    os.environ[SWITCH] = reason or "emulated"
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
