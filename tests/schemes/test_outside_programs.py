"""Every program that reads or builds a model runs with a scheme from outside the package (``outside/fading.py``)."""

import pytest

from megatron_cod.data.sample_corpus import sample_corpus_path, write_sample_conversations
from tests.conftest import TINY
from tests.cuda.programs import PROGRAMS
from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import succeed
from tests.programs import run_program

IMPORT = ["--import", "tests.schemes.outside.fading"]
FADING = [*IMPORT, "--norm-scheme", "fading", "--fading-rate", "2"]
DEPTH = ["--data", sample_corpus_path(), "--tokens", "64", "--fit-tokens", "96", "--seq-length", "32", "--batch", "1"]
ARMS = ["--schemes", "lns", "fading+fading-rate=2"]
ROUND = ["--rounds", "1", "--warmup", "0"]
MODEL = ["--num-layers", "4", "--hidden-size", "32", "--ffn-hidden-size", "64"]

COMMANDS = {
    "generate": ("generate", ["--checkpoint", "{run}", "The state", "--max-new-tokens", "3"], "The state"),
    "analyze_depth": ("analyze_depth", ["--model", "{run}", "--output", "{out}", *DEPTH], "wrote"),
    "prune_layers": ("prune_layers", ["--model", "{run}", "--output", "{out}", "--remove", "3"], "4 blocks become 3"),
    "benchmark schemes": (
        "benchmark",
        ["schemes", *TINY, *ARMS, *ROUND],
        "fading+fading-rate=2",
    ),
    "benchmark monitor": ("benchmark", ["monitor", *TINY, *FADING, *ROUND], "every 100 steps"),
    "preflight": ("preflight", [*TINY, *FADING, "--mock-data"], "passed"),
}
"""Name in ``PROGRAMS`` of the CUDA tests -> the tool, its arguments, what it prints."""

ELSEWHERE = {
    "evaluate": "test_outside_scheme_evaluates",
    "convert_hf export": "test_outside_scheme_exports_as_its_row_says",
    "compare_schemes": "test_every_program_lists_it",
    "rehearse": "test_outside_scheme_rehearses",
    "sft": "test_fine_tunes",
    "depth_study": "tests/study",
    "generate on the host": "generate",
    "analyze_depth, a scheme that does not fold": "analyze_depth",
    "convert_hf import": "a Hugging Face model has the scheme that --as-scheme names: pre_ln or lns",
    "benchmark hf": "compares pre_ln and lns with transformers",
}


def test_every_program_is_run():
    assert {*COMMANDS, *ELSEWHERE} == set(PROGRAMS)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("outside") / "run"
    succeed(1, [*tiny, *FADING, "--save", str(folder), "--save-interval", "8"])
    return folder


@pytest.mark.slow_except("benchmark schemes")
@pytest.mark.parametrize("name", COMMANDS)
def test_program_takes_an_outside_scheme(run, tmp_path, name):
    tool, arguments, expected = COMMANDS[name]
    words = [str(word).format(run=run, out=tmp_path / "out") for word in arguments]
    imports = [] if "--norm-scheme" in words else IMPORT
    done = run_program(f"{tool}.py", *words, *imports)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert expected in done.stdout + done.stderr


@pytest.mark.slow
def test_fine_tunes(run, tmp_path):
    train, _ = write_sample_conversations(tmp_path / "chats")
    flags = ["--recipe", "sft_debug", "--load", str(run), "--sft-data-path", str(train), "--sft-too-long", "truncate"]
    flags += ["--unset", "train-epochs", "--train-iters", "2", "--log-interval", "1", "--save", str(tmp_path / "tuned")]
    ended = run_training_ranks(1, [*MODEL, *flags, *FADING], entry="sft")[0]
    assert ended.code == 0 and "step 2/2 | loss" in ended.output, ended.output[-2000:]
