"""``megatron-cod quickstart``, in a checkout (make quickstart)."""

from megatron_cod.cli.quickstart import main
from megatron_cod.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
