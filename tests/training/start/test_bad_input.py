"""Every wrong input: one clear line from one rank, exit code not 0, no hang, nothing overwritten."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import refuse


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("checkpoint")
    flags = [*tiny, "--train-iters", "2", "--eval-iters", "0", "--save", str(folder), "--save-interval", "2"]
    assert run_training_ranks(1, flags)[0].code == 0
    return folder


WRONG_FLAGS = {
    "unknown flag": (["--norm-schem", "lns"], r"unrecognized arguments: --norm-schem"),
    "unknown scheme": (
        ["--norm-scheme", "lnz"],
        r"--norm-scheme: no norm scheme 'lnz', there are .*did you mean lns\?",
    ),
    "exponent of another scheme": (
        ["--norm-scheme", "pre_ln", "--lns-exponent", "1"],
        r"--lns-exponent does not go with --norm-scheme pre_ln, only with lns",
    ),
    "too many Post-LN blocks": (
        ["--norm-scheme", "mix_ln", "--mix-ln-post-layers", "5"],
        r"--mix-ln-post-layers 5 must be between 0 and --num-layers 4",
    ),
    "scheme on another backend": (
        ["--norm-scheme", "sandwich_ln", "--transformer-impl", "transformer_engine"],
        r"--transformer-impl transformer_engine: Transformer Engine is not installed",
    ),
    "mamba layers": (["--hybrid-layer-pattern", "M*M*"], r"--norm-scheme lns does not support --hybrid-layer-pattern"),
    "heterogeneous blocks": (
        ["--heterogeneous-layers-config-path", "blocks.json"],
        r"--norm-scheme lns does not support --heterogeneous-layers-config-path",
    ),
    "missing recipe": (["--recipe", "recipes/debgu.yaml"], r"recipe recipes/debgu.yaml does not exist.*debug.yaml"),
    "layers over the pipeline": (
        ["--pipeline-model-parallel-size", "2", "--num-layers", "5"],
        r"--num-layers 5 does not divide over --pipeline-model-parallel-size 2",
    ),
    "unknown letter of a layout": (
        ["--pipeline-model-parallel-size", "2", "--pipeline-model-parallel-layout", "Ett|txtL"],
        r"unknown letter 'x'; there are E",
    ),
    "layout of other layers": (
        ["--pipeline-model-parallel-size", "2", "--pipeline-model-parallel-layout", "Ett|tL"],
        r"'Ett\|tL' holds 3 layers, but --num-layers is 4",
    ),
    "first and last counts at PP 1": (
        ["--decoder-first-pipeline-num-layers", "2", "--decoder-last-pipeline-num-layers", "1"],
        r"--decoder-first-pipeline-num-layers and --decoder-last-.*need --pipeline-model-parallel-size of at least 2",
    ),
    "no stages": (["--pipeline-model-parallel-size", "0"], r"--pipeline-model-parallel-size 0 must be at least 1"),
    "too few micro-batches for virtual stages": (
        [
            "--pipeline-model-parallel-size",
            "2",
            "--num-virtual-stages-per-pipeline-rank",
            "2",
            "--micro-batch-size",
            "4",
        ],
        r"virtual stages .* 1 micro-batches .* groups of 2: .* at least 2",
    ),
    "context parallelism": (
        ["--context-parallel-size", "2", "--cp-comm-type", "a2a"],
        r"the torch backend's attention does not support --cp-comm-type a2a",
    ),
    "lengths of their own": (["--hybrid-context-parallel"], r"--hybrid-context-parallel is not supported"),
    "chunks of a sequence": (
        ["--context-parallel-size", "2", "--seq-length", "30"],
        r"--seq-length 30 must be a multiple of 4",
    ),
    "heads over TP": (["--tensor-model-parallel-size", "2", "--num-attention-heads", "1"], r"--num-attention-heads 1"),
    "batch": (["--global-batch-size", "6", "--micro-batch-size", "4"], r"--global-batch-size 6 is not a multiple"),
    "warm-up": (["--unset", "lr-warmup-fraction", "--lr-warmup-iters", "99"], r"--lr-warmup-iters 99 must be less"),
    "tokenizer": (["--padded-vocab-size", "200"], r"257 tokens, .* 200"),
    "missing data": (["--train-data-path", "nowhere/some_text"], r"nowhere/some_text"),
    "no save interval": (["--save", "SAVE"], r"--save needs --save-interval"),
}


@pytest.mark.parametrize(("flags", "pattern"), WRONG_FLAGS.values(), ids=WRONG_FLAGS)
@pytest.mark.slow_except(
    "unknown scheme",
    "scheme on another backend",
    "heterogeneous blocks",
    "layers over the pipeline",
    "no stages",
    "too few micro-batches for virtual stages",
    "context parallelism",
    "missing data",
)
def test_rejects_wrong_flags(tiny, tmp_path, flags, pattern):
    flags = [str(tmp_path) if flag == "SAVE" else flag for flag in flags]
    refuse(2, [*tiny, *flags], pattern)


def test_unknown_recipe_key_names_the_nearest(tiny, tmp_path):
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text("num-layer: 4\n")
    refuse(2, [*tiny, "--recipe", str(recipe)], r"unknown recipe key 'num-layer'; did you mean num-layers\?")


def test_rejects_more_ranks_than_the_layout_uses(tiny):
    flags = [*tiny, "--pipeline-model-parallel-size", "2"]
    refuse(3, flags, r"3 processes .* multiple of 2 .*start 2, or")


@pytest.mark.parametrize("part", ["idx", "bin"])
def test_rejects_truncated_data(text_data, tiny, tmp_path, part):
    for name in ("idx", "bin"):
        source = text_data / f"some_train_text_document.{name}"
        content = source.read_bytes()
        (tmp_path / f"cut.{name}").write_bytes(content[: len(content) // 2] if name == part else content)
    refuse(2, [*tiny, "--train-data-path", str(tmp_path / "cut")], rf"cut.*{part}")


def test_rejects_data_of_a_larger_vocabulary(text_data, tiny):
    flags = [*tiny, "--vocab-size", "100", "--padded-vocab-size", "100"]
    refuse(1, flags, r"some_train_text_document.*100")


def test_rejects_unwritable_checkpoint_directory(tiny, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    flags = [*tiny, "--save", str(tmp_path / "file" / "runs"), "--save-interval", "4"]
    refuse(2, flags, r"--save .* cannot be written: Not a directory")


@pytest.mark.slow
def test_rejects_save_over_another_run(tiny, checkpoint):
    before = sorted((path, path.stat().st_mtime_ns) for path in checkpoint.rglob("*"))
    refuse(2, [*tiny, "--save", str(checkpoint), "--save-interval", "4"], r"already holds checkpoints; resume them")
    assert sorted((path, path.stat().st_mtime_ns) for path in checkpoint.rglob("*")) == before


def damaged(checkpoint, tmp_path, damage):
    copy = tmp_path / "damaged"
    shutil.copytree(checkpoint, copy)
    damage(copy)
    return ["--load", str(copy)]


def _flip(path):
    content = bytearray(path.read_bytes())
    content[10:60] = b"x" * 50
    path.write_bytes(content)


DAMAGES = {
    "truncated": (lambda c: os.truncate(c / "iter_0000002" / "__0_0.distcp", 1000), r"__0_0.distcp has 1000 bytes of"),
    "missing file": (lambda c: (c / "iter_0000002" / "__0_0.distcp").unlink(), r"__0_0.distcp is missing"),
    "index": (lambda c: _flip(c / "iter_0000002" / ".metadata"), r"is corrupt: .metadata cannot be read"),
    "tracker": (lambda c: (c / "latest_checkpointed_iteration.txt").write_text("abc"), r"tracker|is corrupt"),
    "no such iteration": (
        lambda c: (c / "latest_checkpointed_iteration.txt").write_text("77"),
        r"names iteration 77, but .*iter_0000077 does not exist",
    ),
    "bytes": (lambda c: _flip(c / "iter_0000002" / "__0_0.distcp"), r"corrupt"),
}


@pytest.mark.parametrize(("damage", "pattern"), DAMAGES.values(), ids=DAMAGES)
def test_rejects_damaged_checkpoint(checkpoint, tiny, tmp_path, damage, pattern):
    flags = [*tiny, "--override-opt_param-scheduler"]
    refuse(1, [*flags, *damaged(checkpoint, tmp_path, damage)], pattern)


def test_rejects_checkpoint_of_another_shape(checkpoint, tiny):
    refuse(1, [*tiny, "--load", str(checkpoint), "--num-layers", "2"], r"trained with --num-layers 4, this run has 2")


def test_dry_run_trains_nothing(tiny, tmp_path):
    ended = run_training_ranks(1, [*tiny, "--dry-run", "--save", str(tmp_path / "s"), "--save-interval", "4"])[0]
    assert ended.code == 0
    assert "norm-scheme: lns" in ended.output
    assert not list((tmp_path / "s").glob("iter*"))
    assert not (tmp_path / "s" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_one_rank_prints_the_error_under_torchrun(tiny, tmp_path):
    """The real launcher: the line appears once, from rank 0 although it is late, and the exit code is not 0."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    flags = [*tiny, "--pipeline-model-parallel-size", "2"]
    program = tmp_path / "late_rank_0.py"
    program.write_text(
        "import os, runpy, time\n"
        "time.sleep(12 * (os.environ['RANK'] == '0'))\n"
        "runpy.run_module('megatron_cod.training.pretrain', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run(
        [*command, str(program), *flags],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "3 processes were started" in errors[0]


def offset_lost() -> None:
    """The mutant: every stage numbers its layers from 1."""
    from megatron.core.transformer import transformer_layer

    transformer_layer.get_transformer_layer_offset = lambda *_, **__: 0


def offset_of_the_next_stage() -> None:
    """The mutant: stage 0 takes the layers of stage 1 and the other way round."""
    from megatron.core import parallel_state
    from megatron.core.transformer import transformer_layer

    original = transformer_layer.get_transformer_layer_offset
    swapped = lambda config, vp, rank: original(config, vp, 1 - parallel_state.get_pipeline_model_parallel_rank())  # noqa: E731
    transformer_layer.get_transformer_layer_offset = swapped


def offset_one_too_far() -> None:
    """The mutant: the last stage begins one layer late."""
    from megatron.core import parallel_state
    from megatron.core.transformer import transformer_layer

    original = transformer_layer.get_transformer_layer_offset
    late = lambda *of: original(*of) + parallel_state.is_pipeline_last_stage()  # noqa: E731
    transformer_layer.get_transformer_layer_offset = late


@pytest.mark.parametrize(
    ("mutant", "pattern"),
    [
        (offset_one_too_far, r"pipeline stage 1, virtual stage 0 holds layer 4 where layer 3 of 4 belongs"),
        (offset_lost, r"pipeline stage 1, virtual stage 0 holds layer 1 where layer 3 of 4 belongs"),
        (offset_of_the_next_stage, r"pipeline stage 0, virtual stage 0 holds layer 3 where layer 1 of 4 belongs"),
    ],
    ids=["one stage shifted by one", "offset lost", "stages swapped"],
)
@pytest.mark.parametrize("scheme", ["lns", "pre_ln"])
@pytest.mark.slow_except("lns-one stage shifted by one", "lns-stages swapped")
def test_a_wrong_layer_index_never_trains(tiny, mutant, pattern, scheme):
    refuse(2, [*tiny, "--pipeline-model-parallel-size", "2", "--norm-scheme", scheme], pattern, before=mutant)
