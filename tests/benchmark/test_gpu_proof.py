"""make gpu-proof without a GPU: what it says, its parts at toy size, one that fails and one that takes too long."""

import sys
import time

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import gpu_proof


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_without_a_gpu_it_says_what_it_would_run(tmp_path, capsys):
    assert gpu_proof.main(["--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("no GPU found") and all(f"  {name}: " in said for name in gpu_proof.PARTS)
    assert not (tmp_path / "out").exists()


def test_takes_25_minutes_at_most():
    assert sum(part.seconds for part in gpu_proof.PARTS.values()) <= 25 * 60


@pytest.mark.slow
def test_a_part_that_fails_or_hangs_does_not_stop_the_next(tmp_path, monkeypatch):
    def part(code, **more):
        words = (sys.executable, "-c", code)
        return gpu_proof.Part("x", words, 2, words, **more)

    parts = {
        "fails": part("raise SystemExit(3)"),
        "hangs": part("import time; time.sleep(60)"),
        "resumes": part("import time; time.sleep(60)", may_be_stopped=True),
        "passes": part("print('OUT')"),
    }
    monkeypatch.setattr(gpu_proof, "PARTS", parts)
    began = time.monotonic()
    assert gpu_proof.main(["--toy", "--output", str(tmp_path)]) == 1
    assert time.monotonic() - began < 30
    lines = [line.split(" | ") for line in (tmp_path / "report.md").read_text().splitlines()[4:]]
    ended = [
        "failed (exit code 3)",
        "stopped at its limit of 2 s",
        "stopped at its limit of 2 s: repeat to resume",
        "passed",
    ]
    assert [line[2] for line in lines] == ended
    assert (tmp_path / "passes.txt").read_text() == f"{tmp_path}\n"
    assert gpu_proof.main(["--toy", "--output", str(tmp_path), "--parts", "resumes", "passes"]) == 0


@pytest.mark.parametrize("name", gpu_proof.PARTS)
@pytest.mark.slow
def test_each_part_runs_at_toy_size(name, tmp_path):
    code = gpu_proof.main(["--toy", "--output", str(tmp_path), "--parts", name])
    assert code == 0, (tmp_path / f"{name}.txt").read_text()[-2000:]
