"""Killed at any moment, preprocessing goes on to the very bytes of an undisturbed run."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from megatron_cod.data.preprocessing import run, token_runs, work_folder
from megatron_cod.data.preprocessing.job import PreprocessJob
from megatron_cod.data.reading import parts
from megatron_cod.data.tokenizers.choice import TokenizerChoice
from tests.data.conftest import ROOT

BYTES = TokenizerChoice("ByteLevelTokenizer")
# What changes files, as the interpreter tells its audit hooks.
_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> list[str]:
    """Lines and blank lines, plain and compressed, with empty, double and broken documents."""
    folder = tmp_path_factory.mktemp("inputs")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in [*documents[:60], " ", *documents[:5]])
    (folder / "a.jsonl").write_text(lines + "{broken\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines[: len(lines) // 2].encode().rpartition(b"\n")[0]))
    (folder / "c.txt").write_text("\n\n".join(documents[100:140]))
    compressed = zstandard.ZstdCompressor().compress("\n \n".join(documents[140:170]).encode())
    (folder / "d.txt.zst").write_bytes(compressed)
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 30_000)
    monkeypatch.setattr(parts, "BATCH_BYTES", 4000)
    monkeypatch.setattr(token_runs, "RUN_BYTES", 10_000)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def job_of(inputs: list[str], folder: Path, shuffled: bool) -> PreprocessJob:
    job = PreprocessJob(inputs, str(folder / "d"), BYTES, append_eod=True, skip_bad_lines=True)
    return replace(job, split="7,3", deduplicate=True, shuffle_seed=5) if shuffled else job


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def run_apart(job: PreprocessJob, kill_at: int | None = None) -> tuple[int, int]:
    """Run a job in a process of its own that kills itself before its n-th change to files; its exit status (negative for a
    signal) and how many changes it made."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        changes = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal changes
            folder = str(Path(job.output_prefix).parent)
            if event not in _EVENTS or not str(arguments[0]).startswith(folder):
                return
            if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wa+x")):
                return
            changes += 1
            if changes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(count)
            run.preprocess(job)
            code = 0
        finally:
            os.write(writer, str(changes).encode())
            os._exit(code)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        return os.waitstatus_to_exitcode(status), int(file.read() or -1)


def survives(job: PreprocessJob, expected: dict[str, bytes], kills: Iterator[int], between: Callable[[], None]) -> bool:
    """Kill a job at each of these changes in turn, let it go on to its end, and compare."""
    folder = Path(job.output_prefix).parent
    for kill_at in kills:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        between()
        code, _ = run_apart(job, kill_at)
        if code == 0:
            return True  # the run has fewer changes
        assert code == -signal.SIGKILL
        code, _ = run_apart(job)
        if code or content_of(folder) != expected or [path.name for path in folder.iterdir() if path.is_dir()]:
            print(f"killed at change {kill_at}: ended with {code}, left {sorted(folder.rglob('*'))}")
            return False
    return True


Undisturbed = tuple[PreprocessJob, dict[str, bytes], int]


@pytest.fixture(params=[False, True], ids=["in order", "shuffled"])
def undisturbed(request: pytest.FixtureRequest, inputs: list[str], tmp_path: Path) -> Undisturbed:
    """A job, what it makes, and in how many changes to files."""
    folder = tmp_path / "undisturbed"
    folder.mkdir()
    code, changes = run_apart(job_of(inputs, folder, request.param))
    assert code == 0
    return job_of(inputs, tmp_path / "killed", request.param), content_of(folder), changes


@pytest.mark.slow
def test_killed_at_some_changes(undisturbed: Undisturbed) -> None:
    job, expected, changes = undisturbed
    assert changes > 100
    # The last ones are those of publishing.
    chosen = [*random.Random(1).sample(range(1, changes - 15), 6), *range(changes - 15, changes + 1, 3)]
    assert survives(job, expected, iter(chosen), lambda: None)


@pytest.mark.slow
def test_killed_at_every_change(undisturbed: Undisturbed) -> None:
    job, expected, changes = undisturbed
    assert survives(job, expected, iter(range(1, changes + 1)), lambda: None)


@pytest.mark.slow
def test_killed_while_it_replaces_another_dataset(undisturbed: Undisturbed, documents: list[str]) -> None:
    """At no moment is an index beside tokens of another run."""
    job, expected, changes = undisturbed
    job = replace(job, overwrite=True)
    source = Path(job.output_prefix).parent.with_name("other.txt")
    source.write_text("\n\n".join(documents[:20]))

    def another() -> None:
        run.preprocess(replace(job, inputs=[str(source)]))

    chosen = range(changes - 20, changes + 40, 5)
    assert survives(job, expected, iter(chosen), another)


@pytest.mark.slow
def test_killed_again_and_again(undisturbed: Undisturbed) -> None:
    job, expected, changes = undisturbed
    folder = Path(job.output_prefix).parent
    folder.mkdir()
    dice = random.Random(2)
    codes = []
    while 0 not in codes and len(codes) < 30:
        codes.append(run_apart(job, dice.randrange(5, changes // 2))[0])
    assert len(codes) > 3 and set(codes[:-1]) == {-signal.SIGKILL} and codes[-1] == 0
    assert content_of(folder) == expected


def resume_at_the_batch_before(
    self: token_runs.RunWriter, place: tuple[int, int | None] | None, input_bytes: int
) -> token_runs.Commit:
    return COMMIT(self, place and (place[0], max((place[1] or 0) - 2000, 0)), input_bytes)


def say_complete_first(path: Path, content: list[bytes]) -> int:
    if ".tokens" in path.name:
        WRITE(
            path.with_name(path.name.split(".")[0] + ".json"),
            [json.dumps(token_runs.asdict(token_runs.Commit())).encode()],
        )
    return WRITE(path, content)


def forget_a_run(folder: Path, parts: int) -> Iterator[token_runs.Run]:
    return (run for run in ALL_RUNS(folder, parts) if run.number != 1)


COMMIT, WRITE, ALL_RUNS = token_runs.RunWriter.commit, token_runs._write, token_runs.all_runs


@pytest.mark.slow_except("publishing is not finished", "the merge forgets a run")
@pytest.mark.parametrize(
    ("where", "name", "mutant"),
    [
        (token_runs.RunWriter, "commit", resume_at_the_batch_before),
        (token_runs, "_write", say_complete_first),
        (work_folder.WorkFolder, "finish_publishing", lambda self: False),
        (run, "all_runs", forget_a_run),
    ],
    ids=[
        "a run is doubled",
        "a run is said to be complete too early",
        "publishing is not finished",
        "the merge forgets a run",
    ],
)
def test_mutants_do_not_survive(
    inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: object, name: str, mutant: object
) -> None:
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    code, changes = run_apart(job_of(inputs, undisturbed, False))
    assert code == 0
    monkeypatch.setattr(where, name, mutant)
    job = job_of(inputs, tmp_path / "killed", False)
    chosen = [*range(20, changes, 7), *range(changes - 15, changes + 1, 2)]
    assert not survives(job, content_of(undisturbed), iter(chosen), lambda: None)


def command(inputs: list[str], prefix: Path, workers: int) -> list[str]:
    program = f"""
import os, sys
sys.path.insert(0, {str(ROOT / "tools")!r})
from megatron_cod.data.preprocessing import token_runs
from megatron_cod.data.reading import parts
parts.PART_BYTES, parts.BATCH_BYTES, token_runs.RUN_BYTES = 8000, 2000, 2000
os.fsync = lambda handle: None
import preprocess_data
from megatron_cod.errors import run_tool
run_tool(preprocess_data.main)
"""
    options = ["--tokenizer-type", "ByteLevelTokenizer", "--append-eod", "--skip-bad-lines", "--workers", str(workers)]
    more = ["--split", "8,2", "--deduplicate", "--shuffle-seed", "3"]
    return [sys.executable, "-c", program, "--input", *inputs, "--output-prefix", str(prefix), *options, *more]


def kill_at_random(inputs: list[str], tmp_path: Path, times: int) -> None:
    """The program with two workers, killed as a user or a machine would, `times` times in all."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    (tmp_path / "undisturbed").mkdir()
    start = time.monotonic()
    subprocess.run(command(inputs, tmp_path / "undisturbed" / "d", 2), env=environment, check=True, capture_output=True)
    length = time.monotonic() - start
    expected = content_of(tmp_path / "undisturbed")
    dice, killed, folder = random.Random(times), 0, tmp_path / "killed"
    while killed < times:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for _ in range(200):
            process = subprocess.Popen(
                command(inputs, folder / "d", dice.choice([1, 2, 3])), env=environment, stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                process.wait(dice.uniform(0.2, 1.0) * length if killed < times else None)
            except subprocess.TimeoutExpired:
                # The program alone, or with its workers at one go.
                dice.choice([os.kill, os.killpg])(process.pid, signal.SIGKILL)
                killed += 1
            _, errors = process.communicate()
            assert process.returncode in (0, -signal.SIGKILL), errors
            if process.returncode == 0:
                break
        assert content_of(folder) == expected
        assert not (folder / "d.partial").exists()


@pytest.mark.slow
def test_killed_at_random_moments(inputs: list[str], tmp_path: Path) -> None:
    kill_at_random(inputs, tmp_path, 3)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(inputs: list[str], tmp_path: Path) -> None:
    kill_at_random(inputs, tmp_path, 20)


@pytest.mark.slow
def test_damaged_runs_are_made_anew(undisturbed: Undisturbed) -> None:
    """As a loss of power leaves them: files that are empty, cut, or full of zeros, or not there."""
    job, expected, changes = undisturbed
    folder = Path(job.output_prefix).parent
    for damage in (
        lambda path: b"",
        lambda path: path.read_bytes()[:-1],
        lambda path: bytes(path.stat().st_size),
        None,
    ):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        assert run_apart(job, changes // 2)[0] == -signal.SIGKILL
        files = sorted((folder / "d.partial" / "runs").iterdir())
        assert len(files) > 20
        for path in random.Random(3).sample(files, 4):
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage(path))
        assert run_apart(job)[0] == 0
        assert content_of(folder) == expected


def test_two_runs_do_not_work_in_one_folder(inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_folder, "_SECONDS_TO_WAIT", 0.1)
    other = work_folder.WorkFolder(str(tmp_path / "d"))
    other.lock()
    with pytest.raises(ValueError, match=r"another run is at work in .*d\.partial"):
        run.preprocess(job_of(inputs, tmp_path, False))
    other.unlock()
    run.preprocess(job_of(inputs, tmp_path, False))


def test_changed_inputs_do_not_resume(inputs: list[str], tmp_path: Path, documents: list[str]) -> None:
    source = tmp_path / "in.txt"
    source.write_text("\n\n".join(documents[:60]))
    (tmp_path / "killed").mkdir()
    job = job_of([str(source)], tmp_path / "killed", False)
    assert run_apart(job, 40)[0] == -signal.SIGKILL
    source.write_text("\n\n".join(documents[:61]))
    with pytest.raises(ValueError, match=r"d\.partial holds an unfinished run with other inputs; .*--overwrite"):
        run.preprocess(job)
    result = run.preprocess(replace(job, overwrite=True))
    assert next(iter(result.datasets.values())).documents == 61
