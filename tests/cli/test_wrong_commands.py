"""First commands that are wrong: each ends with one line that names what to do, and exit code 2."""

import json
import re
from pathlib import Path

import pytest

from tests.cli.forked import run_command
from tests.commands import TOY

DEBUG = ["train", "--recipe", "debug", *TOY]
WRONG = {
    # what is wrong: (the words, what the line says)
    "nothing to train": (["train"], r"give --recipe NAME \(megatron-cod recipes list\)"),
    "a command misspelt": (["trian", "--recipe", "debug"], r"unknown command 'trian'; did you mean train\?"),
    "no such recipe": (["train", "--recipe", "llama_2b"], r"recipe llama_2b does not exist; did you mean llama_\w+\?"),
    "a recipe's path in a clone": (
        ["train", "--recipe", "recipes/debug.yaml"],
        r"recipe recipes/debug.yaml does not exist; the package has it: give debug instead of a path",
    ),
    "a recipe that is a folder": (["train", "--recipe", "."], r"recipe \. cannot be read: .*Is a directory"),
    "no data": (
        ["train", "--recipe", "llama_60m", "--tokenizer-type", "NullTokenizer", "--vocab-size", "500", *TOY],
        r"no data: give --data-path PREFIX \(made by megatron-cod preprocess\)",
    ),
    "no tokenizer": (["train", "--recipe", "llama_60m", *TOY], r"--tokenizer-(type|model)"),
    "a flag misspelt": (
        [*DEBUG, "--train-iter", "5"],
        r"unrecognized arguments: --train-iter 5; did you mean --train-iters\?",
    ),
    "a scheme misspelt": ([*DEBUG, "--norm-scheme", "lsn"], r"did you mean lns\?"),
    "no learning rate": (["train", "--mock-data", "--train-iters", "2", "--eval-iters", "0"], r"--lr is missing"),
    "text instead of tokens": (
        [*DEBUG, "--train-data-path", "notes.jsonl", "--eval-iters", "0"],
        r"notes\.jsonl.*megatron-cod preprocess",
    ),
    "a tokenizer that is a folder": (
        [*DEBUG, "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", "folder", "--mock-data"],
        r"--tokenizer-model folder",
    ),
    "a layout for more processes": (
        [*DEBUG, "--pipeline-model-parallel-size", "2"],
        r"the layout takes a multiple of 2 .*--nproc 2",
    ),
    "no number of processes": ([*DEBUG, "--nproc", "two"], r"--nproc 'two' is neither a number of processes nor"),
    "a batch that does not divide": (
        [*DEBUG, "--global-batch-size", "3"],
        r"--global-batch-size 3 is not a multiple of",
    ),
    "a folder that cannot be written": ([*DEBUG, "--save", "/proc/run"], r"--save /proc/run cannot be written"),
    "a file in the place of a folder": ([*DEBUG, "--save", "notes.jsonl"], r"--save notes\.jsonl"),
    "nothing to load": ([*DEBUG, "--load", "nowhere", "--ckpt-step", "7"], r"--load|nowhere"),
    "nothing to fine-tune": (["sft", "--recipe", "sft_debug"], r"give --sft-data-path FILE|give --load CHECKPOINT"),
    "nothing to evaluate": (["evaluate", "--eval-data", "notes.jsonl"], r"--load"),
    "input that does not exist": (
        ["preprocess", "--input", "nowhere.txt", "--output-prefix", "x", "--tokenizer-type", "ByteLevelTokenizer"],
        r"input nowhere\.txt does not exist",
    ),
    "required flags missing": (
        ["preprocess", "--input", "notes.jsonl"],
        r"required: --tokenizer-type, --output-prefix",
    ),
    "an output nowhere": (
        [
            "preprocess",
            "--input",
            "notes.jsonl",
            "--output-prefix",
            "/dev/full/x",
            "--tokenizer-type",
            "ByteLevelTokenizer",
        ],
        r"/dev/full",
    ),
    "an action misspelt": (
        ["convert", "exprot"],
        r"invalid choice: 'exprot' \(choose from 'tokenizer', 'export', 'import'\)",
    ),
    "no tokenizer of another library": (
        ["convert", "tokenizer", "--model", "folder", "--output", "x"],
        r"folder holds no tekken\.json, no tiktoken file, and no vocab\.json",
    ),
    "a special token without its id": (
        ["convert", "tokenizer", "--model", "folder", "--output", "x", "--special", "<s>"],
        r"--special: '<s>' is not TOKEN=ID",
    ),
    "a checkpoint that does not exist": (
        ["convert", "export", "--checkpoint", "nowhere", "--output", "x"],
        r"nowhere",
    ),
    "an output that is there": (
        ["analyze", "--model", "nowhere", "--data", "notes.jsonl", "--output", "folder"],
        r"--output folder exists already",
    ),
    "no model to generate from": (["generate", "Hello"], r"one of the arguments --checkpoint --model is required"),
    "runs that do not exist": (["compare-runs", "a", "b"], r"a does not exist"),
    "no such study": (["study", "cpu_2m", "--plan"], r"study cpu_2m does not exist; did you mean cpu_1m\?"),
    "a rehearsal of how many": (["rehearse", "--recipe", "debug"], r"--world-size N is needed"),
    "a dataset to inspect that is none": (["inspect", "nowhere"], r"nowhere"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "notes.jsonl").write_text("".join(json.dumps({"text": f"Note {n}."}) + "\n" for n in range(9)))
    (folder / "folder").mkdir()
    return folder


def test_there_are_more_than_twenty():
    assert len(WRONG) > 20


@pytest.mark.parametrize(("words", "line"), WRONG.values(), ids=WRONG)
def test_wrong_command_is_one_line_that_says_what_to_do(words, line, home):
    done = run_command(*words, cwd=home)
    errors = [one for one in (done.stderr + done.stdout).splitlines() if "error: " in one]
    assert done.returncode == 2 and len(errors) == 1, done.stdout + done.stderr
    assert errors[0].startswith("error: ") and re.search(line, errors[0]), errors[0]
    for text in ("Traceback", "args.", "is not None", "tools/", "usage:"):
        assert text not in done.stderr + done.stdout, text
    assert len(errors[0]) < 600
