"""The tool as it is called: what it prints, its JSON, its limits at 4,096 ranks, and a broken Megatron under it."""

import json
import os
import resource
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.rehearsal.jobs import SMALL, layout

TOOL = [sys.executable, str(ROOT / "tools" / "rehearse.py")]
SEVEN = [
    *("--world-size", "4096", "--recipe", str(ROOT / "recipes" / "llama_7b.yaml")),
    *(*layout(tp=8, pp=8, vp=2), "--global-batch-size", "2048", "--tokens", "20B"),
]


def call(*flags: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*TOOL, *flags], capture_output=True, text=True, cwd=ROOT, check=False, env=os.environ | environment
    )


@pytest.mark.slow
def test_4096_ranks_are_planned_in_20_seconds_and_4_gigabytes(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = call(*SEVEN, "--json", str(tmp_path / "plan.json"))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0, ended.stderr
    # Of one processor: by the clock it takes longer where other tests use the cores.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20
    # The largest of all children so far, this one among them; in KiB.
    assert after.ru_maxrss < 4 * 2**20
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["sizes"] == {"TP": 8, "PP": 8, "VPP": 2, "CP": 1, "EP": 1, "DP": 64}
    assert plan["parameters"] == 6_738_415_616
    assert plan["stages"][3]["chunks"][1]["layers"] == [23, 24]
    assert plan["stages"][3]["chunks"][1]["factors"] == pytest.approx([23**-0.5, 24**-0.5])
    assert (plan["microbatches"], plan["tokens_per_step"]) == (32, 2048 * 2048)
    assert plan["steps"] == -(-20 * 10**9 // (2048 * 2048))
    assert plan["bubble_ratio"] == pytest.approx(7 / 64)
    for text in ("4,096 ranks: TP 8, PP 8, VPP 2", "23..24  0.2085..0.2041", "10.9% of the computing time"):
        assert text in ended.stdout


def test_help_has_examples():
    ended = call("--help")
    assert ended.returncode == 0
    for text in ("--run-rank", "--all-stages", "--shrink", "--world-size 4096 --recipe llama_7b"):
        assert text in ended.stdout


@pytest.mark.slow
def test_a_launch_that_is_not_counted_is_not_called_refused():
    ended = call("--world-size", "1", *SMALL, "--multi-latent-attention", "--q-lora-rank", "16", "--kv-lora-rank", "16")
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.strip().endswith("would start; the rehearsal cannot count --multi-latent-attention yet")


@pytest.mark.slow
def test_the_data_of_the_launch_is_read(text_data):
    flags = [flag for flag in SMALL if flag != "--mock-data"]
    flags += ["--train-data-path", str(text_data / "some_train_text_document"), "--eval-iters", "0"]
    before = sorted(text_data.rglob("*"))
    ended = call("--world-size", "2", "--run-rank", "1", *flags, *layout(pp=2))
    assert ended.returncode == 0, ended.stderr
    assert "stage 1/1, rank 1: as planned: layers 5..8" in ended.stdout
    assert "not checked" not in ended.stdout
    assert sorted(text_data.rglob("*")) == before  # Megatron's index of it is kept elsewhere


BROKEN = """
import os
if "rehearsal" in os.environ.get("BREAK_MEGATRON", ""):
    import megatron_cod.training.before_megatron
    from megatron.core.transformer import transformer_layer
    from functools import partial
    from tests.rehearsal.test_mutants import replace_offset
    replace_offset(2, None)
"""


@pytest.mark.slow
def test_a_broken_megatron_ends_the_tool_with_code_1_and_the_stage(tmp_path):
    """The offset of stage 2 is lost in every process that the tool starts; its plan does not notice, the building does."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    flags = ["--world-size", "4", "--all-stages", *SMALL, *layout(pp=4)]
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    ended = call(*flags, PYTHONPATH=path, BREAK_MEGATRON="rehearsal")
    assert ended.returncode == 1, ended.stderr
    assert [line for line in ended.stdout.splitlines() if "as planned" in line][-1].startswith("stage 1/3")
    last = ended.stderr.splitlines()[-1]
    assert last == "error: pipeline stage 2, virtual stage 0: layers 1..2 were built, the plan has layers 5..6"


@pytest.mark.slow
def test_an_unfit_step_ends_with_code_1_and_its_reason(tmp_path):
    """What only shows once the model runs: one line, with where the log is."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'megatron_cod.rehearsal.worker' in ' '.join(sys.orig_argv):\n"
        "    import megatron_cod.training.data.batches as batches\n"
        "    def fail(*_): raise RuntimeError('no memory left for the step')\n"
        "    batches.forward_step = fail\n"
    )
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    ended = call("--world-size", "2", "--run-rank", "1", *SMALL, *layout(pp=2), PYTHONPATH=path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(
        "error: pipeline stage 1: rank 1: RuntimeError: no memory left for the step (log: "
    )


@pytest.mark.slow
def test_every_stage_of_a_7b_at_4096_ranks_is_as_planned(tmp_path):
    ended = call(*SEVEN, "--all-stages", "--shrink", "--json", str(tmp_path / "plan.json"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("as planned") == 8
    assert len(ended.stderr.splitlines()) == 0
    built = json.loads((tmp_path / "plan.json").read_text())["rehearsed"]
    assert [report["rank"] for report in built] == [512 * stage for stage in range(8)]
    held = sorted(number for report in built for chunk in report["chunks"] for number in chunk["layers"])
    assert held == list(range(1, 33))


@pytest.mark.slow
def test_the_scale_page_holds_the_table_that_the_tool_prints():
    ended = call("--scale-table")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() in (ROOT / "docs" / "scale.md").read_text()


@pytest.mark.parametrize(
    ("gib", "words"),
    [
        ("40", []),
        ("18", ["stage 0 needs 17.", "up to 18% more", "18.00"]),
        ("16", ["optimizer 9.42 GiB", "what would help"]),
    ],
    ids=["fits", "may not fit", "does not fit"],
)
@pytest.mark.slow
def test_warns_where_a_device_has_too_little_memory(gib, words):
    seven = ("--recipe", str(ROOT / "recipes" / "llama_7b.yaml"), "--mock-data", *layout(tp=8))
    ended = call("--world-size", "8", *seven, "--device-memory", gib)
    assert ended.returncode == 0, ended.stderr
    found = [line for line in ended.stdout.splitlines() if line.startswith("WARNING")]
    assert len(found) == bool(words) and all(word in found[0] for word in words)


def test_rejects_device_memory_that_is_no_size():
    ended = call("--world-size", "1", *SMALL, "--device-memory", "none")
    assert ended.returncode == 2 and "'none' is not a number of GiB above 0" in ended.stderr
