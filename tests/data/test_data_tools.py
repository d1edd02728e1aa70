"""The programs as a user runs them, the sample corpus, and how tools end."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_cod.cli import preprocess
from megatron_cod.data.datasets.check import check_prefix
from megatron_cod.data.preprocessing.progress import PreprocessingProgress
from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers.choice import TOKENIZER_TYPES
from megatron_cod.errors import UserError, run_tool
from tests.common.streams import Clock, Terminal

ROOT = Path(__file__).parents[2]
Tool = Callable[..., subprocess.CompletedProcess[str]]


def test_the_commands_of_the_documentation(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE | re.DOTALL)
    for name in ("tools", "megatron_cod", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    done = subprocess.run(
        ["bash", "-euc", "\n".join(blocks)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # What torch and Megatron say when training's datasets are built.
    said = [line for line in done.stderr.splitlines() if not re.match(r"W\d+ |WARNING:megatron", line)]
    assert said == []
    assert "vocabulary       4000 pieces" in done.stdout
    assert "--tokenizer-type SentencePieceTokenizer --tokenizer-model data/sotu.model" in done.stdout
    assert "--tokenizer-type NullTokenizer --vocab-size 257" in done.stdout
    assert "DatasetSummary(" in done.stdout
    for split, documents in (("train", 22), ("valid", 2)):
        summary = check_prefix(tmp_path / "data" / f"sotu_{split}_text_document", vocab_size=4000)
        assert summary.documents == documents
    assert check_prefix(tmp_path / "data" / "bytes_valid_text_document", vocab_size=257).documents == 2


def test_summary_counts_empty_documents_by_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"title": "a", "body": "b"}\n{"title": "c", "body": ""}\n')
    command = ["preprocess_data.py", "--input", str(tmp_path / "in.jsonl"), "--tokenizer-type", "ByteLevelTokenizer"]
    for keys, says in (
        (["title", "body"], "empty documents: 0 under title, 1 under body; 0 bad lines and 0 duplicates skipped"),
        (["body"], "1 empty documents, 0 bad lines and 0 duplicates skipped"),
    ):
        output = ["--output-prefix", str(tmp_path / str(len(keys))), "--json-keys", *keys]
        monkeypatch.setattr(sys, "argv", [*command, *output])
        preprocess.main()
        assert says in capsys.readouterr().out


def test_dry_run_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--input", str(sample_corpus_path()), "--output-prefix", str(tmp_path / "d"), "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["preprocess_data.py", *arguments, "--tokenizer-type", "ByteLevelTokenizer"])
    preprocess.main()
    assert "nothing written" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow_except(
    "arguments0-none.jsonl does not exist", "arguments1-the format is not known from the name", "arguments3-needs --tok"
)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--input", "none.jsonl", "--tokenizer-type", "ByteLevelTokenizer"], "none.jsonl does not exist"),
        (["--input", __file__, "--tokenizer-type", "ByteLevelTokenizer"], "the format is not known from the name"),
        (
            ["--input", __file__, "--input-format", "jsonl", "--tokenizer-type", "ByteLevelTokenizer"],
            "test_data_tools.py, line 1: not JSON",
        ),
        (["--input", str(sample_corpus_path()), "--tokenizer-type", "HuggingFaceTokenizer"], "needs --tok"),
    ],
)
def test_rejects_wrong_input_with_exit_code_2(tool: Tool, tmp_path: Path, arguments: list[str], says: str) -> None:
    done = tool("preprocess_data.py", "--output-prefix", tmp_path / "d", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ") and says in done.stderr
    assert not list(tmp_path.iterdir())


def test_wrong_flags_and_help(tool: Tool) -> None:
    commands = {
        "preprocess_data.py": "megatron-cod preprocess",
        "train_tokenizer.py": "megatron-cod tokenizer",
        "make_sample_corpus.py": "python tools/make_sample_corpus.py",
    }
    for name, command in commands.items():
        assert command in tool(name, "--help").stdout
        wrong = tool(name, "--nonsense")
        assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    missing = tool("train_tokenizer.py", "--input", "none.txt", "--output-prefix", "x")
    assert (missing.returncode, missing.stderr) == (2, "error: input none.txt does not exist\n")


def test_tool_types_are_the_packages() -> None:
    """The program lists them itself, so that --help need not import Megatron."""
    assert set(preprocess.TYPES) == set(TOKENIZER_TYPES)


def test_the_sample_is_clean(speeches: list[str]) -> None:
    assert len(speeches) == 24
    assert sum(len(text.encode()) for text in speeches) == 859_378
    assert sample_corpus_path().stat().st_size < 1_000_000
    assert not any(mark in text for text in speeches for mark in ("<", "\ufffd", "&amp;", "\u00e2\u20ac"))


def test_the_sample_tool_makes_lines_and_refuses_damage(tool: Tool, tmp_path: Path) -> None:
    data = tmp_path / "package" / "data"
    data.mkdir(parents=True)
    speech = {"year": 2001, "name": "A", "party": "B", "text": " We the people. "}
    (data / "2001_a_b.json").write_text(json.dumps(speech))
    output = tmp_path / "out.jsonl"
    done = tool("make_sample_corpus.py", tmp_path / "package", "--output", output)
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text()) == {"text": "We the people.", "year": 2001, "president": "A"}
    (data / "2002_a_b.json").write_text(json.dumps({**speech, "text": "We <b>the</b> people."}))
    damaged = tool("make_sample_corpus.py", tmp_path / "package", "--output", output)
    assert damaged.returncode == 2 and "damaged text at character 3: '<b>'" in damaged.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        (UserError("two\n  lines"), 2, "error: two lines\n"),
        (
            FileNotFoundError(2, "No such file or directory", "x.txt"),
            2,
            "error: x.txt: No such file or directory\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_how_a_tool_ends(capsys: pytest.CaptureFixture[str], error: BaseException | None, code: int, line: str) -> None:
    def main() -> None:
        if error:
            raise error

    with pytest.raises(SystemExit) as caught:
        run_tool(main)
    assert caught.value.code == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("not enough values to unpack")], ids=repr)
def test_a_fault_keeps_its_traceback(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run_tool(main)
    said = capsys.readouterr().err
    assert caught.value.code == 1
    assert said.startswith("Traceback (most recent call last)") and f"\n{type(error).__name__}: {error}\n" in said
    assert said.splitlines()[-1].startswith(f"fault: {type(error).__name__}: {error}; this is a fault of megatron_cod")


def test_progress_prints_lines_when_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("megatron_cod.common.progress.time.monotonic", clock)
    stream = io.StringIO()
    progress = PreprocessingProgress(1000, 200, stream)
    clock.now = 1.0
    progress.update(100, 1, 10, 100)
    clock.now = 6.0
    progress.update(300, 5, 1230, 6_000_000)
    clock.now = 7.0
    progress.update(600, 6, 1300, 7_000_000)
    progress.close()
    # 200 of the 1000 bytes were done before: 500 are left at 300 in 6 seconds.
    assert stream.getvalue() == " 50%  5 documents  1,230 tokens  1.0 MB/s  205 tokens/s  0:10 left\n"


def test_progress_draws_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    progress = PreprocessingProgress(1000, stream=stream)
    progress.update(1000, 2, 30, 1000)
    progress.close()
    assert "2 documents  30 tokens" in stream.getvalue()
