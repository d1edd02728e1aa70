"""The table of commands: each answers --help at once, and is what its script in tools/ starts."""

import ast
import re
import subprocess
import sys

import pytest

import megatron_cod
from megatron_cod.cli import training, training_help
from megatron_cod.cli.early_checks import check_early
from megatron_cod.cli.main import COMMANDS, help_text
from megatron_cod.errors import UserError
from tests.cli.command import megatron_cod as command
from tests.conftest import ROOT

CLI = ROOT / "megatron_cod" / "cli"
HEAVY = ("torch", "megatron.core", "megatron.training", "transformers", "numpy", "matplotlib", "pandas")
NO_COMMAND = {
    "rehearse_time",
    "main",
    "early_checks",
    "benchmark_table",
    "__init__",
    "parsing",
    "training_help",
    "scheme_comparison",
    "quickstart_runs",
}
"""Modules of the folder that are no command."""
HELPERS = ("make_corpus", "make_sample_corpus", "benchmark_preprocessing", "gpu_proof")
"""Programs of the repository alone: how its corpora were made, a measurement of preprocessing, proofs on a GPU."""


def module_of(name: str) -> str:
    return COMMANDS[name].module or name.replace("-", "_")


def test_every_module_is_a_command():
    assert {path.stem for path in CLI.glob("*.py")} == {module_of(name) for name in COMMANDS} | NO_COMMAND


# Imported, not run: the time of an interpreter is the machine's, and what it imports is ours.
IMPORTS = """
import sys
sys.argv = ["megatron-cod", {name!r}, "--help"]
try:
    from megatron_cod.cli.main import main
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = [name for name in {heavy!r} if name in sys.modules]
assert not heavy, heavy
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_heavy(name, tmp_path):
    program = IMPORTS.format(name=name, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"megatron-cod {name}" in done.stdout


def test_finds_a_heavy_import():
    program = IMPORTS.format(name="init", heavy=HEAVY).replace(
        "from megatron_cod.cli", "import numpy\n    from megatron_cod.cli"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "numpy" in done.stderr


def test_the_help_names_every_command():
    named = re.findall(r"^  (\S+)", help_text(), re.MULTILINE)
    assert named == list(COMMANDS)


def test_version_and_unknown_command(tmp_path):
    assert command("--version", cwd=tmp_path).stdout == f"megatron-cod {megatron_cod.__version__}\n"
    wrong = command("trian", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (2, "error: unknown command 'trian'; did you mean train?\n")
    none_near = command("xyz", cwd=tmp_path)
    assert "there are quickstart, recipes" in none_near.stderr


@pytest.mark.parametrize("entry", training.ENTRIES)
def test_the_help_of_training_is_that_of_its_parser(entry, monkeypatch):
    """Otherwise: ``python -m megatron_cod.cli.training_help`` writes it."""
    monkeypatch.setenv("COLUMNS", "80")
    assert (training.HELP / f"{entry}.txt").read_text() == training_help.help_of(entry)


def test_every_script_of_tools_starts_a_command():
    for path in sorted((ROOT / "tools").glob("*.py")):
        if path.stem in HELPERS:
            continue
        tree = ast.parse(path.read_text())
        (started,) = (
            node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "cli" in node.module
        )
        name = re.match(r"``megatron-cod (\S+)``", ast.get_docstring(tree))[1]
        assert started == f"megatron_cod.cli.{module_of(name)}", path


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "-m megatron_cod.training.pretrain"),
        (["--lr", "1"], "-m megatron_cod.training.pretrain --lr 1"),
        (["--nproc", "1", "--lr", "1"], "-m megatron_cod.training.pretrain --lr 1"),
        (
            ["--lr", "1", "--nproc", "2"],
            "-m megatron_cod.training.torchrun --standalone --nproc-per-node 2 -m megatron_cod.training.pretrain --lr 1",
        ),
        (
            ["--nproc-per-node=gpu"],
            "-m megatron_cod.training.torchrun --standalone --nproc-per-node gpu -m megatron_cod.training.pretrain",
        ),
    ],
)
def test_what_train_starts(words, line, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert " ".join(training.command_line("pretrain", words)) == line


def test_train_refuses_wrong_numbers_of_processes(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    for text in ("0", "-1", "two"):
        with pytest.raises(UserError, match="--nproc"):
            training.command_line("pretrain", ["--nproc", text])
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="under torchrun or srun omit it"):
        training.command_line("pretrain", ["--nproc", "2"])


@pytest.mark.parametrize(
    ("words", "has_folder"),
    [
        (["--recipe", "debug"], True),
        (["--lr", "1"], True),
        (["--recipe", "debug", "--save", "x"], False),
        (["--recipe", "debug", "--save=x"], False),
        (["--recipe", "debug", "--rank-log-dir", "none"], False),
        (["--recipe", "debug", "--dry-run"], False),
        (["--recipe", "saving.yaml"], False),
        (["--recipe", "no_such"], False),
    ],
)
def test_output_of_the_ranks_goes_to_a_folder_without_save(words, has_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / "saving.yaml").write_text("lr: 1\nsave: x\n")
    found = training.log_flags("train", words)
    assert bool(found) is has_folder and (not found or found[0] == "--rank-log-dir")
    assert training.log_flags("evaluate", words) == []
    monkeypatch.setenv("RANK", "0")
    assert training.log_flags("train", words) == []


def test_every_flag_is_known_to_the_early_check():
    """Otherwise: ``python -m megatron_cod.cli.training_help`` writes the list."""
    assert (training.HELP / "flags.txt").read_text() == training_help.all_flags()


EARLY = {
    "recipe": (["--recipe", "debgu"], "recipe debgu does not exist; did you mean debug?"),
    "flag": (["--train-iter", "5", "--lr", "1"], "unrecognized arguments: --train-iter 5; did you mean --train-iters?"),
    "flag with its value": (["--train-iter=5"], "unrecognized arguments: --train-iter=5; did you mean --train-iters?"),
}


@pytest.mark.parametrize("name", EARLY)
def test_refuses_a_recipe_and_a_flag_before_torch_is_imported(name):
    words, line = EARLY[name]
    hidden = "import sys; sys.modules['torch'] = None"
    code = f"{hidden}; from megatron_cod.cli.early_checks import *; check_early({words})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1 and f"UserError: {line}" in done.stderr


@pytest.mark.parametrize(
    "words", [["--import", "mine", "--my-flag", "3"], ["--lr", "-1e-3", "--recipe=debug", "--seed=-3"], ["--recipe"]]
)
def test_leaves_to_the_run_what_may_be_right(words):
    check_early(words)
