"""torchrun's endings: one line each, the right exit code, and no restart of what would end the same way."""

import os
import signal
import socket
import subprocess
import sys
from argparse import Namespace

import pytest
from torch.distributed import DistError, run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousTimeoutError

from megatron_cod.errors import UserError, may_pass
from megatron_cod.launch import torchrun_flags
from megatron_cod.launch.network import holder
from megatron_cod.launch.rendezvous import Head
from megatron_cod.training.faults.saving import SaveError
from megatron_cod.training.torchrun import Agent, ending, main
from tests.conftest import ROOT
from tests.ports import free_port


def start(tmp_path, body: str, *options: str) -> tuple[subprocess.CompletedProcess, int]:
    """Ranks that do this; how often rank 0 was started."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, pathlib, signal\n"
        f"attempts = pathlib.Path({str(tmp_path)!r})\n"
        "rank, first = int(os.environ['RANK']), os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "if rank == 0: (attempts / f'attempt{os.getpid()}').touch()\n" + body
    )
    command = [sys.executable, "-m", "megatron_cod.training.torchrun", "--standalone", "--max-restarts", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(
        [*command, *options, str(script)], capture_output=True, text=True, timeout=120, env=environment
    )
    return done, len(list(tmp_path.glob("attempt*")))


@pytest.mark.slow_except("2-1-error: it was the wrong flag")
@pytest.mark.parametrize(
    ("code", "attempts", "said"),
    [
        (2, 1, "error: it was the wrong flag"),
        (85, 1, "was stopped by a signal, after saving; the same command resumes from there"),
        (7, 3, "ended with exit code 7, and 2 restarts are used up; its output is above"),
    ],
)
def test_a_wrong_start_and_a_stop_are_not_started_again(tmp_path, code, attempts, said):
    wrong = "from megatron_cod.launch.exit_codes import fail\nfail('it was the wrong flag')\n"
    done, started = start(tmp_path, wrong if code == 2 else f"os._exit({code})\n")
    assert (done.returncode, started) == (code, attempts), done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


COMMON = """
import time
from megatron_cod.errors import CommonError, Phase, UserError
from megatron_cod.launch.exit_codes import one_line_endings
time.sleep(2 * (rank == {last}))
with one_line_endings(lambda: Phase.SET_UP):
    raise {kind}('no such file') if rank == 0 else CommonError('rank 0 on node1: no such file')
"""


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.slow
def test_the_last_line_is_rank_0s_whoever_failed_first(tmp_path, last):
    """The other rank writes its reason first, and waits for rank 0 to speak."""
    body = COMMON.format(last=last, kind="UserError")
    done, started = start(tmp_path, body, "--nproc-per-node", "2")
    assert (done.returncode, started) == (2, 1), done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
    assert said == ["error: no such file"] * 2  # rank 0's, and torchrun's last


@pytest.mark.parametrize(("kind", "name"), [("CommonError", ""), ("UserError", "rank 1 on {host}: ")])
@pytest.mark.slow
def test_common_error_has_no_rank_name(tmp_path, kind, name):
    """Rank 0 does not come to speak, and rank 1 does in its place."""
    body = COMMON.format(last=1, kind="UserError").replace(
        "with one_line_endings", "if rank == 0: time.sleep(60)\nwith one_line_endings"
    )
    body = body.replace("else CommonError", f"else {kind}")
    done, _ = start(tmp_path, body, "--nproc-per-node", "2")
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error: ")]
    assert said == [f"error: {name.format(host=socket.gethostname())}rank 0 on node1: no such file"] * 2


LOSES_RANK_0 = """
import torch.distributed as dist
from megatron_cod.errors import Phase
from megatron_cod.launch.exit_codes import one_line_endings
dist.init_process_group("gloo")
dist.barrier()
if first and rank == 0:
    os.kill(os.getpid(), signal.SIGKILL)
with one_line_endings(lambda: Phase.SET_UP):
    try:
        dist.barrier()
    except RuntimeError as error:
        (attempts / "noticed").touch()
        {}
dist.destroy_process_group()
"""


REACTIONS = {
    "as it is": "raise",
    "from it": "raise ValueError('no such checkpoint') from error",
    "instead": "raise OSError('the save failed')",
}


@pytest.mark.slow
@pytest.mark.parametrize("reaction", REACTIONS)
def test_a_killed_rank_is_started_again_also_where_others_fail_in_set_up(tmp_path, reaction):
    """Where errors are the user's, as in set-up and in saves, a lost rank shows as one of the same kind in the others."""
    body = LOSES_RANK_0.format(REACTIONS[reaction])
    done, started = start(tmp_path, body, "--nproc-per-node", "2", "--monitor-interval", "2")
    assert (done.returncode, started) == (0, 2), done.stderr
    assert (tmp_path / "noticed").exists()


def arguments(endpoint: str, conf: str = "join_timeout=3") -> Namespace:
    words = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-conf", conf, "x.py"]
    return run.parse_args(words)


WRONG = {
    "port above": (
        ["--rdzv-endpoint", "localhost:99999"],
        "PORT (--rdzv-endpoint) is '99999', which is not a whole number",
    ),
    "port no number": (["--rdzv-endpoint", "localhost:abc"], "PORT (--rdzv-endpoint) is 'abc', which is not a whole"),
    "port 0": (
        ["--rdzv-endpoint", "localhost:0"],
        "PORT (--rdzv-endpoint) is '0', which is not a whole number from 1 to",
    ),
    "nodes": (["--nnodes", "x"], "NODES (--nnodes) is 'x', which is not a whole number of at least 1"),
    "no nodes": (["--nnodes", "0"], "NODES (--nnodes) is '0', which is not a whole number of at least 1"),
    "nodes reversed": (["--nnodes", "3:2"], "NODES (--nnodes) is '3:2', which is neither a number nor MIN:MAX"),
    "no processes": (
        ["--nproc-per-node", "0"],
        "PROCESSES (--nproc-per-node) is '0', which is not a whole number of at",
    ),
    "processes": (
        ["--nproc-per-node", "two"],
        "PROCESSES (--nproc-per-node) is 'two': Unsupported nproc_per_node value",
    ),
    "restarts": (["--max-restarts", "x"], "argument --max-restarts/--max_restarts: invalid int value: 'x'"),
    "time": (["--rdzv-conf", "join_timeout=soon"], "RENDEZVOUS_TIMEOUT (--rdzv-conf join_timeout) is 'soon', which is"),
}


@pytest.mark.parametrize(("flags", "said"), WRONG.values(), ids=WRONG)
def test_rejects_bad_numbers_by_variable(flags, said, monkeypatch, capsys):
    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(
        sys, "argv", ["torchrun", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost", *flags, "x.py"]
    )
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(run, "run", lambda args: pytest.fail("started"))
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_accepts_numbers():
    words = ["--nnodes", "1:2", "--nproc-per-node", "cpu", "--rdzv-endpoint", "node1:65535", "x.py"]
    args = torchrun_flags.parse(words)
    assert torchrun_flags.endpoint(args, 29400) == ("node1", 65535)
    assert torchrun_flags.endpoint(Namespace(rdzv_endpoint="node1"), 29400) == ("node1", 29400)


def test_names_process_of_used_port():
    code = (
        "import socket, time\ns = socket.create_server(('', 0))\nprint(s.getsockname()[1], flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        try:
            found = holder(int(other.stdout.readline()))
        finally:
            other.kill()
    assert f"by process {other.pid}: " in found and "import socket, time s = " in found and "\n" not in found


@pytest.mark.parametrize(
    ("text", "name", "port"),
    [
        ("node1:29400", "node1", 29400),
        ("node1", "node1", 7),
        ("[::1]:29400", "::1", 29400),
        ("::1:29400", "::1", 29400),
        ("[::1]", "::1", 7),
    ],
)
def test_parses_endpoint(text, name, port):
    assert torchrun_flags.endpoint(Namespace(rdzv_endpoint=text), 7) == (name, port)


def test_resolves_head_and_tries_its_port():
    with pytest.raises(ValueError, match="HEAD no-such-host is not a host name known here"):
        Head(arguments("no-such-host:29400"))
    with socket.create_server(("", 0)) as other:
        head = Head(arguments(f"127.0.0.1:{other.getsockname()[1]}"))
        with pytest.raises(ValueError, match=r"port \d+ of 127.0.0.1 is in use \(by process \d+: "):
            head.reach()


def test_waits_for_head_for_the_given_time():
    head = Head(arguments(f"127.0.0.1:{free_port(25000)}"))
    head.is_here = False
    with pytest.raises(ValueError, match=r"HEAD did not answer at 127.0.0.1:\d+ within 3 s \(Connection refused\)"):
        head.reach()


def test_head_lists_members_and_torchrun_keeps_its_time_outs():
    given = arguments(f"localhost:{free_port(25000)}", "join_timeout=70,last_call_timeout=5")
    head = Head(given)
    head.reach()
    assert head.machines() == [socket.gethostname()]
    assert given.rdzv_conf == "read_timeout=70,join_timeout=70,last_call_timeout=5,is_host=1"


class Gone(Head):
    """A HEAD that two machines had come to."""

    def __init__(self) -> None:
        self.name, self.port, self.seconds = "node1", 29400, 60.0

    def machines(self) -> list[str]:
        return ["node1", "node2"]


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer"), True),
        (DistError("NCCL error"), True),
        (RuntimeError("shapes do not fit"), False),
        (SaveError("after a lost rank", may_pass=True), True),
        (SaveError("[gloo/transport/...] on a full disk", may_pass=False), False),
    ],
)
def test_classifies_temporary_errors(error, passes):
    assert may_pass(error) is passes


def failure(code: int) -> ChildFailedError:
    return ChildFailedError("x", {3: ProcessFailure(local_rank=1, pid=9, exitcode=code, error_file="<N/A>")})


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (failure(-9), 137, "rank 3 on {host} got SIGKILL, and 10 restarts are used up; its output is above"),
        (failure(1), 1, "rank 3 on {host} ended with exit code 1, and 10 restarts"),
        (
            SignalException("", signal.SIGTERM),
            143,
            "ended by SIGTERM; the same command resumes from the newest checkpoint",
        ),
        (RendezvousClosedError(), 1, "another machine ended the run; its last line has the reason"),
        (RendezvousTimeoutError(), 1, "fewer than 3 machines were at node1:29400 within 60 s; there came node1, node2"),
        (DistError("x"), 1, "HEAD is gone: node1:29400 does not answer any more"),
        (UserError("wrong"), 2, "wrong"),
    ],
)
def test_exit_codes_decide_about_a_retry(error, code, said):
    found = ending(error, Namespace(max_restarts=10, nnodes="3"), Gone())
    assert found[0] == code and found[1].startswith(said.format(host=socket.gethostname()))


def test_reports_error_of_rank_after_lost_head(monkeypatch):
    """HEAD's agent ends with its own rank; ours may see that before our rank has spoken."""
    monkeypatch.setattr(Agent, "reason", "rank 1 on node2: its data is missing")
    assert ending(DistError("x"), Namespace(max_restarts=10, nnodes="3"), Gone()) == (2, Agent.reason)
