"""Fine-tune: ``torchrun --nproc-per-node N -m megatron_cod.training.sft --recipe FILE --load CHECKPOINT ...``.

Thin on purpose; see ``helper_processes.py``.
"""

from megatron_cod.launch import helper_processes


def main() -> None:
    """Run the fine-tuning; see ``run.py``."""
    helper_processes.die_with_launcher()
    from megatron_cod.training import run
    from megatron_cod.training.fine_tuning.task import task

    run.main(task())


if __name__ == "__mp_main__":  # the name a multiprocessing helper imports this module under
    helper_processes.settle()
elif __name__ == "__main__":
    main()
