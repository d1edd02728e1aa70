"""Each flag of saving, on GPUs and CPU processes: the resumed run has the unbroken one's losses, to the bit.

The table: ``tests/training/flags/save_flags.py``; that every flag is in it: ``tests/training/flags/test_save_checks.py``.
"""

import os

import pytest

from megatron_cod.checkpoint.directory import damage, is_dcp
from megatron_cod.training.start.loading import locate
from tests.cuda.resumes import difference, launch, save
from tests.training.flags.save_flags import CASES, DCP

RUN = {name: case for name, case in CASES.items() if not case.refused}
REFUSED = {name: case for name, case in CASES.items() if case.refused}
MANY_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"


@pytest.fixture(autouse=True)
def connections(monkeypatch):
    monkeypatch.setenv(MANY_CONNECTIONS, "8")  # FSDP takes anything but 1


ON_CPUS = ("plain", "distributed", "fsdp2", "fsdp2 bf16", "parallel load")
PLACES = [(name, "cuda") for name in RUN] + [(name, "cpu") for name in ON_CPUS]


@pytest.mark.parametrize(("name", "device"), PLACES, ids=[f"{name} {device}" for name, device in PLACES])
@pytest.mark.slow
def test_saves_and_resumes(tmp_path, name, device):
    case = RUN[name]
    saved = save(tmp_path, case.world, *case.flags, device=device)
    assert difference(saved, tmp_path / "resumed", case.world, *case.flags, *case.resumed, device=device) == 0


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
@pytest.mark.slow
def test_rejects_before_the_first_step(tmp_path, case):
    run = launch(case.world, tmp_path, *case.flags)
    assert run.refused(*case.refused), run.console[-2000:]


@pytest.mark.slow
def test_fsdp2_resumes_on_another_number_of_ranks_and_nowhere_else(tmp_path):
    saved = save(tmp_path, 2, *DCP)
    assert difference(saved, tmp_path / "one", 1, *DCP) <= 1e-6
    checkpoint = saved.stopped / "iter_0000002"
    assert is_dcp(checkpoint) and damage(checkpoint) is None
    assert launch(1, tmp_path / "plain", "--load", str(saved.stopped)).refused("torch_dcp", "--use-torch-fsdp2")
    with pytest.raises(ValueError, match="is in the format torch_dcp"):
        locate(saved.stopped, None)
    os.truncate(next(checkpoint.glob("*.distcp")), 10)
    assert "has 10 bytes" in str(damage(checkpoint))


def without_loading_flag() -> None:
    """A mutant: the row that lets a torch_dcp checkpoint be loaded is omitted."""
    from megatron_cod.adaptations import torch_only

    rows = torch_only.TORCH_ADAPTED
    torch_only.TORCH_ADAPTED = tuple(row for row in rows if "ChainedOptimizer" not in row.module)


@pytest.mark.slow
def test_without_the_adaptation_fsdp2_does_not_resume(tmp_path):
    saved = save(tmp_path, 2, *DCP)
    flags = [*DCP, "--load", str(saved.stopped)]
    assert launch(2, tmp_path / "again", *flags, before=without_loading_flag).code != 0
