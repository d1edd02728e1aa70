"""``megatron-cod rehearse``, in a checkout."""

from megatron_cod.cli.rehearse import main
from megatron_cod.errors import run_tool

if __name__ == "__main__":
    run_tool(main)
