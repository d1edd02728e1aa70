"""What a refusal advises can be done: each flag that a message names exists, and the advice helps where it is followed."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from megatron_cod.errors import UserError
from megatron_cod.rehearsal.launch import read_launch
from tests.commands import launch_flags
from tests.conftest import ROOT, TINY
from tests.distributed.launch import run_training_ranks
from tests.rehearsal.jobs import SMALL, layout

_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:[-_][a-zA-Z0-9_]+)*(?![\w{*-])")
OF_OTHERS = {
    "pip, in advice and in what fetches text": "--no-build-isolation --no-deps --quiet",
    "curl": "--silent",
    "git": "--always --dirty --exclude",
    "make": "--eval",
    "sbatch": "--array",
    "nvidia-smi": "--format --query-gpu",
    "torchrun": "--nnodes --rdzv-conf --rdzv-endpoint --standalone",
    "Megatron's, where nvidia-kitchen is installed": "--kitchen-config-file",
    "a placeholder in a text on schemes": "--flag",
}
"""Flags of other programs in our texts."""


def _texts(tree: ast.AST) -> list[str]:
    """String constants, those of docstrings left out."""
    holders = ast.Module | ast.ClassDef | ast.FunctionDef
    firsts = [node.body[0] for node in ast.walk(tree) if isinstance(node, holders) and node.body]
    docs = {id(first.value) for first in firsts if isinstance(first, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs]
    return [node.value for node in constants if isinstance(node.value, str)]


def _defined(tree: ast.AST) -> set[str]:
    """Flags that a module adds to a parser."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    words = [word for call in calls if call.func.attr == "add_argument" for word in call.args]
    return {word.value for word in words if isinstance(word, ast.Constant) and str(word.value).startswith("--")}


@cache
def _trees() -> dict[Path, ast.AST]:
    return {path: ast.parse(path.read_text()) for path in (ROOT / "megatron_cod").rglob("*.py")}


def unknown_flags(texts: list[str], known: set[str]) -> set[str]:
    return {flag for text in texts for flag in _FLAG.findall(text)} - known


def test_every_flag_that_a_message_names_exists():
    known = launch_flags() | {flag for tree in _trees().values() for flag in _defined(tree)}
    texts = [text for tree in _trees().values() for text in _texts(tree)]
    assert len({flag for text in texts for flag in _FLAG.findall(text)}) > 400
    assert unknown_flags(texts, known) == set(" ".join(OF_OTHERS.values()).split())


def test_finds_a_flag_that_does_not_exist():
    assert unknown_flags(["omit --save, or give --save-often 3 with --lr"], launch_flags()) == {"--save-often"}


def refusal(*flags: object, base=SMALL, world: int = 1) -> str | None:
    try:
        read_launch([*base, *map(str, flags)], world)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("rank", ["mp_rank_00", "mp_rank_00_001", "mp_rank_01"])
def test_a_checkpoint_in_megatrons_old_format_is_named_as_such(rank, tmp_path):
    file = tmp_path / "iter_0000004" / rank / "model_optim_rng.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"PK")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("4")
    said = refusal("--load", tmp_path)
    assert said is not None and "old format torch" in said and "--ckpt-convert-format torch_dist" in said


DATA = [word for word in TINY if word != "--mock-data"]


@pytest.mark.parametrize("split", ["100,0,0", "100", "1,0,1"])
def test_a_split_without_validation_is_refused_where_there_is_one(split, text_data):
    flags = ["--data-path", text_data / "some_train_text_document", "--split", split]
    said = refusal(*flags, base=DATA)
    assert said is not None and f"--split {split} leaves none" in said and "--eval-iters 0" in said
    assert refusal(*flags, "--eval-iters", "0", base=DATA) is None
    assert refusal(*flags[:-1], "50,50,0", base=DATA) is None


def test_validation_without_its_data_is_refused(text_data):
    train = ["--train-data-path", text_data / "some_train_text_document"]
    said = refusal(*train, base=DATA)
    assert said is not None and "no --valid-data-path is given" in said and "--eval-iters 0" in said
    assert refusal(*train, "--eval-iters", "0", base=DATA) is None
    assert refusal(*train, "--valid-data-path", text_data / "some_valid_text_document", base=DATA) is None
    missing = refusal(*train, "--valid-data-path", text_data / "nowhere", base=DATA)
    assert missing is not None and str(text_data / "nowhere") in missing


@pytest.fixture(scope="module")
def weights_alone(tiny, tmp_path_factory):
    """A run of two steps on the CPU that keeps no optimizer state."""
    save = tmp_path_factory.mktemp("weights")
    flags = ["--train-iters", "2", "--eval-iters", "0", "--save", str(save), "--save-interval", "2", "--no-save-optim"]
    ended = run_training_ranks(1, [*tiny, *flags])[0]
    assert ended.code == 0, ended.output[-2000:]
    return save


@pytest.mark.slow
def test_a_resume_without_optimizer_state_says_what_helps(weights_alone, tiny):
    flags = ["--train-iters", "4", "--eval-iters", "0", "--load", str(weights_alone), "--log-interval", "1"]
    said = refusal(*flags, base=tiny)
    assert said is not None
    assert all(flag in said for flag in ("--no-save-optim", "--no-load-optim", "--finetune"))
    for remedy, steps in (("--no-load-optim", 2), ("--finetune", 4)):
        assert refusal(*flags, remedy, base=tiny) is None
        ended = run_training_ranks(1, [*tiny, *flags, remedy])[0]
        assert ended.code == 0, ended.output[-2000:]
        assert len(re.findall(r"^step \d+/4 \| loss", ended.output, re.M)) == steps


def test_a_vocabulary_too_small_for_a_loaded_model_needs_another_import(weights_alone, tiny):
    """--vocab-size cannot help there: the checkpoint has as many rows as it has."""
    flags = ["--eval-iters", "0", "--vocab-size", "300"]
    loaded = refusal(*flags, "--load", weights_alone, base=tiny)
    assert loaded is not None and "import the model again with --padded-vocab-size 300" in loaded
    assert "raise --vocab-size" not in loaded


@pytest.mark.parametrize(("tp", "rows"), [(1, 301), (2, 302)])
def test_a_vocabulary_too_small_for_a_new_model_needs_more_rows(tp, rows):
    flags = ["--eval-iters", "0", "--vocab-size", "301", *layout(tp)]
    fresh = refusal(*flags, world=tp)
    assert fresh is not None and "301 tokens" in fresh and fresh.endswith(f"give --padded-vocab-size {rows}")
    assert refusal(*flags, "--padded-vocab-size", rows, world=tp) is None
