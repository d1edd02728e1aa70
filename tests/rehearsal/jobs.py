"""What the tests of this folder share: small launches, and one rank of them in a forked process."""

from collections.abc import Callable

from megatron_cod.estimate.ranks import place_of
from megatron_cod.rehearsal.compare import compare
from megatron_cod.rehearsal.launch import read_launch
from megatron_cod.rehearsal.plan import Plan, make_plan
from megatron_cod.rehearsal.worker import Job, RankReport, rehearse
from tests.conftest import ROOT
from tests.distributed.launch import run_ranks

DEBUG = ["--recipe", str(ROOT / "recipes" / "debug.yaml"), "--mock-data"]
SMALL = [
    *(*DEBUG, "--num-layers", "8", "--hidden-size", "32", "--ffn-hidden-size", "64"),
    *("--seq-length", "32", "--max-position-embeddings", "32"),
]


def layout(tp: int = 1, pp: int = 1, vp: int = 1) -> list[str]:
    flags = ["--tensor-model-parallel-size", str(tp), "--pipeline-model-parallel-size", str(pp)]
    flags += ["--sequence-parallel"] if tp > 1 else []
    return flags + (["--num-virtual-stages-per-pipeline-rank", str(vp)] if vp > 1 else [])


def planned(flags: list[str], world: int) -> Plan:
    return make_plan(read_launch(flags, world))


def job_of(flags: list[str], world: int, rank: int, steps: int) -> Job:
    launch = read_launch(flags, world)
    return Job(launch.command_line, rank, world, steps, mock_data=True, vocabulary=launch.args.padded_vocab_size)


def worker(_rank: int, job: Job, before: Callable[[], None] | None) -> RankReport:
    if before is not None:
        before()
    return rehearse(job)


def build(flags: list[str], world: int, rank: int, before: Callable[[], None] | None = None) -> RankReport:
    """Rank ``rank`` of the launch, built and run for two steps in a process of its own, ``before`` called in it first."""
    return run_ranks(1, worker, job_of(flags, world, rank, 2), before)[0]


def rehearsed(flags: list[str], world: int, rank: int, before: Callable[[], None] | None = None) -> RankReport:
    """The same, compared with the plan: Mismatch where it differs."""
    report = build(flags, world, rank, before)
    compare(planned(flags, world), place_of(rank, read_launch(flags, world).args, world), report, 2)
    return report
