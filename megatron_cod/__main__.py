"""``python -m megatron_cod``: the command ``megatron-cod``, where its script is not on the path."""

from megatron_cod.cli.main import main

if __name__ == "__main__":
    main()
