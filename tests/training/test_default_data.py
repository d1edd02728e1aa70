"""A run of the debug recipe that names no data trains on the text of the package; --save without an interval saves."""

import os
from functools import partial
from pathlib import Path

import pytest
import yaml

from megatron_cod.errors import UserError
from megatron_cod.training.data import default_data
from megatron_cod.training.flags.command_line import resolve_command_line
from megatron_cod.training.flags.save_interval import DEFAULT_STEPS
from megatron_cod.training.pretraining import TASK
from tests.conftest import ROOT, TINY
from tests.distributed.launch import run_ranks, run_training_ranks

LOG = "no data given: training on State of the Union speeches that come with the package"


def in_cache(folder: str) -> None:
    os.environ["XDG_CACHE_HOME"] = folder


def parsed(*flags: str):
    return resolve_command_line([*TINY, *flags], TASK)[0]


def test_trains_on_the_text_of_the_package(tmp_path):
    cache, save = tmp_path / "cache", tmp_path / "run"
    flags = [*TINY, "--pipeline-model-parallel-size", "2", "--save", str(save)]
    ended = run_training_ranks(2, flags, before=partial(in_cache, str(cache)))
    assert [one.code for one in ended] == [0, 0], ended[0].output[-2000:]
    assert LOG in ended[0].output and "validation at step 4" in ended[0].output
    (made,) = (cache / "megatron_cod").iterdir()
    assert (made / "sotu_valid_text_document.idx").is_file()
    resolved = yaml.safe_load((save / "resolved_args.yaml").read_text())
    assert resolved["sample-data"] is True and "train-data-path" not in resolved
    before = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    again = run_training_ranks(1, [*TINY, "--train-iters", "2"], before=partial(in_cache, str(cache)))
    assert again[0].code == 0 and {path.name: path.stat().st_mtime_ns for path in made.iterdir()} == before


def make(_rank: int, cache: str) -> list[str]:
    in_cache(cache)
    raw = parsed()
    default_data.use_sample(raw)
    default_data.make_sample(raw)
    return sorted(path.name for path in default_data.folder().iterdir())


def test_two_runs_at_once_make_it_once(tmp_path):
    one, other = run_ranks(2, make, str(tmp_path))
    assert one == other and len(one) >= 6
    assert len(list((tmp_path / "megatron_cod").iterdir())) == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--mock-data"],
        ["--data-path", "mine"],
        ["--valid-data-path", "mine"],
        ["--unset", "sample-data"],
        ["--vocab-size", "300"],
        ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", "x.model"],
    ],
    ids=" ".join,
)
def test_is_not_used_where_data_is_named_or_the_tokens_differ(flags):
    raw = parsed(*flags)
    named = raw.train_data_path
    default_data.use_sample(raw)
    assert raw.train_data_path == named is None


def test_says_what_to_do_where_it_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    raw = parsed()
    default_data.use_sample(raw)
    with pytest.raises(UserError, match="set XDG_CACHE_HOME, or give --train-data-path"):
        default_data.make_sample(raw)


def test_only_recipes_of_bytes_ask_for_it():
    for path in Path(ROOT / "recipes").glob("*.yaml"):
        recipe = yaml.safe_load(path.read_text())
        if recipe.get("sample-data"):
            assert recipe["tokenizer-type"] == "NullTokenizer" and recipe["vocab-size"] == 257, path


@pytest.mark.parametrize(
    ("flags", "interval"),
    [
        ([], None),
        (["--save", "x"], DEFAULT_STEPS),
        (["--save", "x", "--save-interval", "7"], 7),
        (["--save", "x", "--save-retain-interval", "50"], 50),
        (["--save", "x", "--skip-train"], None),
    ],
)
def test_save_interval_has_a_default(flags, interval, capsys):
    assert parsed(*flags).save_interval == interval
    logged = "saving every" in capsys.readouterr().out
    assert logged is (interval in (DEFAULT_STEPS, 50))
