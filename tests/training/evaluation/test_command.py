"""What the command says, and what it refuses: one line each."""

import json
import shutil

import numpy as np
import pytest

from tests.conftest import TINY
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import PP2, refuse
from tests.training.evaluation.datasets import write_dataset
from tests.training.evaluation.runs import evaluate


def test_prints_table(checkpoints, asked, tmp_path):
    flags = ["--load", str(checkpoints / "lns"), *asked, *PP2, "--output", str(tmp_path / "new" / "found.json")]
    first, last = evaluate(2, flags)
    assert "(lns) by stream: 3 sets, 26 documents, 2,687 tokens to predict in " in first.output
    rows = [line.split() for line in last.output.splitlines() if line.startswith(("data", "web", "mix", "total"))]
    assert [row[0] for row in rows] == ["data", "web", "mix/b", "mix/a", "mix", "total"]
    assert rows[0] == ["data", "documents", "tokens", "loss", "perplexity", "bits/byte"]
    found = json.loads((tmp_path / "new" / "found.json").read_text())
    assert rows[-1][1:3] == ["26", "2,687"] and rows[-1][3] == f"{found['total']['loss']:.4f}"
    assert (found["iteration"], found["norm_scheme"], found["processes"]) == (8, "lns", 2)
    assert "tokens/s" in last.output


def test_dry_run_accepts_a_single_checkpoint(checkpoints, asked, tmp_path):
    flags = ["--load", str(checkpoints / "lns" / "iter_0000008"), *asked, "--dry-run"]
    ended = run_training_ranks(1, [*flags, "--output", str(tmp_path / "o.json")], entry="evaluate")[0]
    assert ended.code == 0 and "dry run: arguments, checkpoint and data are in order" in ended.output
    assert "evaluating" in ended.output and not list(tmp_path.iterdir())


class Poison:
    """The embedding of one byte is NaN: so are the losses of rows from there on."""

    def __init__(self, byte: int) -> None:
        self.byte = byte

    def __call__(self) -> None:
        from megatron_cod.training.start import loading

        build = loading.build

        def poisoned(args, config):
            model = build(args, config)
            for name, parameter in model[0].named_parameters():
                if name.endswith("word_embeddings.weight"):
                    parameter.data[self.byte] = float("nan")
            return model

        loading.build = poisoned


@pytest.mark.slow
def test_names_document_of_nonfinite_loss(checkpoints, tmp_path):
    """One row of 32 of the second set holds the byte."""
    draw = np.random.default_rng(1)
    write_dataset(tmp_path / "good", [draw.integers(32, 90, 200)])
    documents = [draw.integers(32, 90, 100) for _ in range(3)]
    documents[1][30] = 200
    write_dataset(tmp_path / "bad", documents)
    flags = ["--load", str(checkpoints / "lns"), "--eval-data", str(tmp_path / "good"), str(tmp_path / "bad")]
    ended = run_training_ranks(2, [*flags, "--output", str(tmp_path / "o.json")], before=Poison(200), entry="evaluate")
    assert ended[1].code == 1
    line = next(line for line in ended[1].output.splitlines() if line.startswith("error: "))
    assert "the loss is not finite in 1 of 10 windows of bad, first predicting tokens 129 to 160, in document 2" in line
    found = {row["name"]: row for row in json.loads((tmp_path / "o.json").read_text())["sets"]}
    assert found["good"]["loss"] > 0 and found["good"]["windows_not_finite"] == 0
    assert found["bad"]["loss"] is None and found["bad"]["windows_not_finite"] == 1


BAD_FLAGS = {
    "no checkpoint": ([], r"nothing to evaluate: give --load CHECKPOINT"),
    "unknown checkpoint": (["--load", "nowhere/run", "--eval-data", "WEB"], r"checkpoint nowhere/run does not exist"),
    "no data": (["--load", "RUN"], r"no data: give --eval-data \[NAME=\]PATH"),
    "a step that is not there": (
        ["--load", "RUN", "--ckpt-step", "5", "--eval-data", "WEB"],
        r"--ckpt-step 5: .*iter_0000005 does not exist",
    ),
    "missing dataset": (
        ["--load", "RUN", "--eval-data", "WEBB"],
        r"dataset .*webb does not exist: .*did you mean .*web\?",
    ),
    "missing text": (["--load", "RUN", "--eval-data", "gone.jsonl"], r"input gone.jsonl does not exist"),
    "names": (["--load", "RUN", "--eval-data", "a=WEB", "a=WEB"], r"--eval-data has the name a twice"),
    "stride": (
        ["--load", "RUN", "--eval-data", "WEB", "--stride", "33"],
        r"--stride 33 .*--seq-length 32",
    ),
    "positions": (
        ["--load", "RUN", "--eval-data", "WEB", "--seq-length", "256"],
        r"max_position_embeddings|position",
    ),
    "a recipe": (
        ["--load", "RUN", "--eval-data", "WEB", *TINY[:2]],
        r"--recipe: the model's flags come from the direc",
    ),
    "to save": (["--load", "RUN", "--eval-data", "WEB", "--save", "x"], r"evaluation does not take --save"),
    "a prefix that there is not": (
        ["--load", "RUN", "--eval-data", "WEB", "--eval-prefix", "bos"],
        r"--eval-prefix: the tokenizer has no bos",
    ),
    "another model": (
        ["--load", "RUN", "--eval-data", "WEB", "--num-layers", "2"],
        r"trained with --num-layers 4, this run has 2",
    ),
    "another scheme": (
        ["--load", "RUN", "--eval-data", "WEB", "--norm-scheme", "pre_ln"],
        r"was trained with --norm-scheme lns",
    ),
    "a tokenizer too large": (
        ["--load", "RUN", "--eval-data", "WEB", "--vocab-size", "300"],
        r"300 tokens, .* 264",
    ),
    "a tokenizer that is not there": (
        [
            "--load",
            "RUN",
            "--eval-data",
            "WEB",
            "--tokenizer-type",
            "SentencePieceTokenizer",
            "--tokenizer-model",
            "g.model",
        ],
        r"--tokenizer-model g.model does not exist; give its path",
    ),
    "output": (
        ["--load", "RUN", "--eval-data", "WEB", "--output", "/proc/x/y"],
        r"--output /proc/x/y cannot be written",
    ),
    "key": (
        ["--load", "RUN", "--eval-data", "MIX", "--eval-json-key", "content"],
        r"mix.jsonl, line 1: key 'content' is mi",
    ),
    "layout": (
        ["--load", "RUN", "--eval-data", "WEB", "--tensor-model-parallel-size", "3"],
        r"1 processes .* multiple of 3",
    ),
}


def filled(flags: list[str], checkpoints, eval_data) -> list[str]:
    places = {"RUN": checkpoints / "lns", "WEB": eval_data / "web", "MIX": eval_data / "mix.jsonl"}
    for name, place in places.items():
        flags = [flag.replace(name, str(place)) for flag in flags]
    return [flag.replace(f"{eval_data / 'web'}B", f"{eval_data / 'web'}b") for flag in flags]


@pytest.mark.parametrize(("flags", "pattern"), BAD_FLAGS.values(), ids=BAD_FLAGS)
@pytest.mark.slow_except("no checkpoint", "no data", "stride", "another model", "another scheme", "layout")
def test_rejects_wrong_flags(checkpoints, eval_data, flags, pattern):
    refuse(1, filled(flags, checkpoints, eval_data), pattern, entry="evaluate")


def record(prefix, **changed):
    """A record beside a dataset as preprocessing writes it."""
    values = {
        "tokenizer_type": "ByteLevelTokenizer", "tokenizer_model": None, "model_sha256": None, "vocab_size": 257,
        "eod_id": 256, "append_eod": True, "training_arguments": [], "split": None, "json_key": "text", "documents": 1,
        "tokens": 9, "text_bytes": 8, "empty": 0, "bad": 0, "dtype": "uint16", "inputs": [], "format": 1,
    }  # fmt: skip
    prefix.with_name(prefix.name + ".json").write_text(json.dumps({**values, **changed}))


BAD_DATA = {
    "ids beyond the vocabulary": ([3, 300, 4], {}, r"token id 300 at position 1, .* 0 to 263"),
    "nothing to predict": ([3], None, r"bad has 1 tokens: there is nothing to predict"),
    "empty": ([], None, r"dataset .*bad is empty \(0 tokens\)"),
    "of another tokenizer": (
        [3, 4, 5],
        {"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": "x.model", "vocab_size": 260, "eod_id": 2},
        r"x.model of 260 ids, .* 2 .*NullTokenizer has 257",
    ),
}


@pytest.mark.parametrize(("ids", "made", "pattern"), BAD_DATA.values(), ids=BAD_DATA)
def test_rejects_bad_datasets(checkpoints, tmp_path, ids, made, pattern):
    write_dataset(tmp_path / "bad", [np.array(ids, np.int64)])
    if made is not None:
        record(tmp_path / "bad", tokens=len(ids), **made)
    refuse(1, ["--load", str(checkpoints / "lns"), "--eval-data", str(tmp_path / "bad")], pattern, entry="evaluate")


def test_bad_lines_are_skipped_if_requested(checkpoints, eval_data, tmp_path):
    lines = (eval_data / "mix.jsonl").read_text().splitlines()[:3]
    (tmp_path / "some.jsonl").write_text(
        "\n".join([lines[0], "{", '{"text": 7}', "", lines[1], '{"text": " "}']) + "\n"
    )
    flags = ["--load", str(checkpoints / "lns"), "--eval-data", str(tmp_path / "some.jsonl")]
    refuse(1, flags, r"some.jsonl, line 2: not JSON: .*--eval-skip-bad-lines skips such documents", entry="evaluate")
    output = evaluate(1, [*flags, "--eval-skip-bad-lines", "--dry-run"])[0].output
    assert "some.jsonl: 2 empty and 2 bad documents skipped" in output
    assert "some.jsonl, line 3: key 'text' holds a int" in output and "1 sets, 2 documents" in output


def test_rejects_run_without_recipe(checkpoints, asked, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoints / "lns", copy, ignore=shutil.ignore_patterns("resolved_args*"))
    flags = ["--load", str(copy), *asked, "--dry-run"]
    refuse(1, flags, r"copy has no resolved_args.yaml, which has the settings of its model", entry="evaluate")
    shutil.copy(checkpoints / "lns" / "resolved_args.yaml", copy / "recipe.yaml")
    evaluate(1, flags)
