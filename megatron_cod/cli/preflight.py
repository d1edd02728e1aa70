"""Look at the machines of a job before it starts: one table, machine by machine and check by check.

    megatron-cod preflight --recipe debug --mock-data                          this machine alone
    HEAD=node1 NODES=2 examples/preflight.sh [flags of the launch]                             on each of two machines
    srun --ntasks-per-node=8 megatron-cod preflight --head node1 [flags of the launch]      on a Slurm allocation

Started once for every process that the job will have, or at least once a machine; under srun and torchrun it finds its
place by itself. The flags below are this tool's, all others are the launch's, which follow megatron_cod.training.pretrain:
by them it knows which data must be readable, where checkpoints go and how large they are. docs/launching.md says what
each check looks at. Every check has a time-out; a machine that is lost on the way is named.

Exit code: 0 nothing failed (warnings are no failure), 1 something failed, 2 it could not begin.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_cod.cli.parsing import Parser
from megatron_cod.console import print_error
from megatron_cod.errors import UserError, one_line, run_tool
from megatron_cod.launch.counts import whole_number
from megatron_cod.launch.network import addresses_of, port_number, without_brackets

if TYPE_CHECKING:
    from megatron_cod.preflight.findings import Finding
    from megatron_cod.preflight.table import Result


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        description=__doc__,
        usage="%(prog)s [flags below] [flags of the launch]",
    )
    where = parser.add_argument_group("the machines")
    where.add_argument(
        "--head", default="localhost", metavar="HOST", help="the machine that holds the job's rendezvous"
    )
    where.add_argument("--nodes", default="1", metavar="N", help="machines, if no launcher sets it (default 1)")
    where.add_argument(
        "--processes", default="1", metavar="P", help="processes a machine, likewise; LOCAL_RANK counts them"
    )
    where.add_argument("--port", default="29400", help="the port of the job's rendezvous (default %(default)s)")
    where.add_argument("--meeting-port", metavar="PORT", help="the preflight's own (default: the one after)")
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--join-timeout", type=float, default=120.0, metavar="S", help="wait so long for all (default %(default)s)"
    )
    limits.add_argument("--check-timeout", type=float, metavar="S", help="shorten the checks' time-outs to this")
    limits.add_argument(
        "--max-clock-offset", type=float, default=5.0, metavar="S", help="fail above (default %(default)s)"
    )
    limits.add_argument(
        "--min-bandwidth",
        type=float,
        default=0.0,
        metavar="GB/S",
        help="fail below this bus bandwidth between machines",
    )
    limits.add_argument(
        "--size-mib", type=int, default=16, metavar="MIB", help="size of the all_reduce (default %(default)s)"
    )
    parser.add_argument(
        "--world-size", type=int, metavar="N", help="ranks of the job (default: as many as processes here)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the table and all figures, on HEAD")
    parser.add_argument(
        "--machine-file", metavar="FILE", help="write what was measured for rehearse --time --machine FILE, on HEAD"
    )
    return parser


def _concluded(settings: argparse.Namespace, results: list[Result], missing: list[Finding]) -> bool:
    """Whether something failed. Writes the machine file otherwise; one that cannot be written is a failure too."""
    from megatron_cod.preflight import report
    from megatron_cod.preflight.machine_file import write_machine_file

    if report.failed(results, missing):
        return True
    try:
        if settings.machine_file:
            write_machine_file(Path(settings.machine_file), results)
    except (UserError, OSError) as error:
        print_error(f"error: {one_line(error)}")
        return True
    return False


def main() -> None:
    """Meet, check, print on HEAD; every process ends with the same exit code."""
    settings, flags = build_parser().parse_known_args()
    for file in filter(None, (settings.json, settings.machine_file)):
        if not Path(file).parent.is_dir():
            raise UserError(f"{file}: its folder does not exist")
    settings.port = port_number(settings.port, "PORT (--port)")
    settings.nodes = whole_number(settings.nodes, "NODES (--nodes)")
    settings.processes = whole_number(settings.processes, "PROCESSES (--processes)")
    port = port_number(settings.meeting_port or str(settings.port + 1), "the preflight's own port (--meeting-port)")
    warnings.simplefilter("ignore")
    # After parsing, so that --help and wrong options answer at once.
    from megatron_cod.preflight import report
    from megatron_cod.preflight.check import Here
    from megatron_cod.preflight.job import JobProcess
    from megatron_cod.preflight.member_channel import Meeting
    from megatron_cod.preflight.process_place import find_place
    from megatron_cod.preflight.table import run_checks

    settings.head = without_brackets(settings.head)
    address = addresses_of(settings.head)[0]
    place = find_place(os.environ, settings.head, settings.nodes, settings.processes)
    launch = JobProcess(settings.world_size or place.world, flags) if place.is_head else None
    meeting = Meeting(place, settings.head, port, settings.join_timeout)
    missing = report.missing_findings(meeting.gather(settings.join_timeout))
    if place.is_head:
        print(f"{len(meeting.members)} processes on {len(meeting.firsts)} machines", file=sys.stderr, flush=True)
    here = Here(meeting, settings, address)
    try:
        results = run_checks(here, launch)
    finally:
        for mark in here.marks:
            with suppress(OSError):
                mark.unlink()
    if place.is_head:
        print(report.format_table(results, missing), flush=True)
        if settings.json:
            Path(settings.json).write_text(json.dumps(report.as_json(results, missing), indent=1) + "\n")
    bad = meeting.share("failed", _concluded(settings, results, missing) if place.is_head else None)
    if place.local == 0:
        print(
            f"preflight {'failed' if bad else 'passed'}"
            + ("" if place.is_head else f" on {place.node}; HEAD has the table")
        )
    meeting.depart()
    sys.stdout.flush()
    os._exit(1 if bad else 0)  # a check that timed out may still hold a thread


if __name__ == "__main__":
    run_tool(main)
