"""The table of what is adapted where neither Transformer Engine nor Apex is: its names exist, and it is used only there."""

import pytest

from megatron_cod.adaptations import cpu, torch_only
from megatron_cod.adaptations.table import missing_names
from tests.commands import run_python

ROWS = torch_only.TORCH_ADAPTED


def test_every_adapted_name_is_still_there():
    assert missing_names(ROWS) == []


def test_every_row_gives_a_reason_and_no_name_comes_twice():
    names = [(row.module, row.name) for row in (*cpu.ADAPTED, *ROWS)]
    assert len(names) == len(set(names))
    assert all(row.reason for row in ROWS)


@pytest.mark.parametrize("have", [False, True])
@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.slow
def test_rows_are_put_in_wherever_both_packages_are_missing(have, gpu):
    """On a GPU as on a CPU, and nowhere where Megatron found one of the packages."""
    code = f"""
        import torch
        torch.cuda.is_available = lambda: {gpu}
        import megatron_cod.training.before_megatron
        from megatron.core.optimizer import distrib_optimizer
        from megatron_cod.adaptations import torch_only
        from megatron_cod.adaptations.table import owner
        distrib_optimizer.HAVE_APEX_OR_TE = {have}
        found = lambda: [getattr(owner(row.module), row.name) for row in torch_only.TORCH_ADAPTED]
        before = found()
        torch_only.install()
        once = found()
        torch_only.install()
        print({{a is b for a, b in zip(before, once)}}, once == found())
    """
    assert run_python(code) == f"{{{have}}} True"
