"""Run a command on emulated devices with the real Transformer Engine: ``python -m ...transformer_engine COMMAND ...``.

build.py beside this file must have built it; otherwise the command runs all the same, and its tests skip with the reason.
"""

import os
import sys

from tests.gpu_emulation.__main__ import CACHE
from tests.gpu_emulation.__main__ import SWITCH as DEVICES
from tests.gpu_emulation.build import built, environment, missing
from tests.gpu_emulation.transformer_engine.build import Build, default_folder

SWITCH = "MEGATRON_COD_CUDA_TE"


def main() -> None:
    command = sys.argv[1:]
    if not command:
        sys.exit(__doc__)
    made = Build(default_folder())
    reason = missing() or made.missing
    if reason is None:
        os.environ |= made.environment()
        os.environ |= environment(built(CACHE, made.libraries), os.environ.get("FAKECUDA", "numerics,report"))
    os.environ[SWITCH] = os.environ[DEVICES] = reason or "emulated"
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
