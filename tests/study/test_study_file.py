"""Study files: what they mean, and bad ones in one line each."""

import math
import os
import subprocess
import sys

import pytest
import yaml

from megatron_cod.errors import UserError
from megatron_cod.study.directory import StudyDirectory
from megatron_cod.study.jobs import Job, flags_of
from megatron_cod.study.shapes import Shape, shape_of
from megatron_cod.study.study_file import read_study
from megatron_cod.training.flags.parser import build_parser
from tests.conftest import ROOT
from tests.study.cases import study_of

BAD = {
    "unknown key": ({"learning-rate": [1e-3]}, "unknown study key 'learning-rate'; did you mean learning-rates?"),
    "unknown arm": ({"arms": ["lnss"]}, "did you mean lns?"),
    "unknown rule": (
        {"rule": {"standard-error": 2}},
        "unknown rule key 'standard-error'; did you mean standard-errors?",
    ),
    "no rule": ({"rule": None}, "rule is missing"),
    "rates fall": ({"learning-rates": [4e-3, 2e-3]}, "learning-rates 0.004, 0.002 must increase"),
    "rates not geometric": ({"learning-rates": [1e-3, 2e-3, 8e-3]}, "must be a geometric grid"),
    "no width": ({"depths": [100], "head-size": 64}, "no width gives 1,000,000 non-embedding parameters at 100 layers"),
    "seeds reused": ({"tuning-seeds": [11]}, "seeds [11] are tuning-seeds too"),
    "seed twice": ({"seeds": [11, 11]}, "each seed is given once"),
    "two budgets": ({"tokens-per-parameter": 20}, "give steps or tokens-per-parameter, one of them"),
    "rate of an arm": ({"arms": ["lns+lr=1e-3"]}, "the study sets lr and init-method-std for every run"),
    "arm twice": ({"arms": ["lns", "lns+normal"]}, "arms lns and lns+normal are the same"),
    "same arm": ({"arms": ["pre_ln+normal", "pre_ln+init-policy=normal"]}, "are the same"),
    "flag of the study": ({"flags": {"lr": 1e-3}}, "flags: lr is set by the study"),
    "unknown baseline": ({"without-baselines": ["pre_ln"]}, "did you mean pre_ln+"),
    "arm and left out": ({"without-baselines": ["pre_ln+normal"]}, "is in arms and in without-baselines"),
    "depths alone": ({"non-embedding-parameters": None}, "depths need non-embedding-parameters"),
    "word for a number": ({"steps": "many"}, "steps: 'many' is not a number"),
    "other recipe": ({"recipe": "nowhere.yaml"}, "does not exist"),
    "recipe of other blocks": ({"flags": {"swiglu": False}}, "shapes are counted with swiglu"),
}


@pytest.mark.parametrize(("changes", "text"), BAD.values(), ids=BAD)
def test_rejects_bad_study_in_one_line(tmp_path, changes, text):
    with pytest.raises(UserError) as error:
        study_of(tmp_path, **changes)
    assert text in str(error.value) and "\n" not in str(error.value)


def test_rejects_missing_file_and_other_yaml(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_study(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match="must hold 'key: value' lines"):
        read_study(tmp_path / "list.yaml")


def test_both_baselines_are_there_unless_skipped_by_name(tmp_path):
    assert study_of(tmp_path, arms=["lns"]).arms == ("pre_ln+normal", "pre_ln+scaled", "lns")
    assert study_of(tmp_path, arms=["lns"], **{"without-baselines": ["pre_ln+normal"]}).arms == ("pre_ln+scaled", "lns")


@pytest.mark.parametrize(("layers", "parameters", "head"), [(8, 1e6, 16), (32, 1e6, 16), (12, 1e7, 32), (48, 1e7, 32)])
def test_shapes_have_the_requested_parameters(layers, parameters, head):
    shape = shape_of(layers, parameters, head)
    assert shape.layers == layers and shape.hidden == head * shape.heads
    assert abs(shape.non_embedding / parameters - 1) < 0.02


def test_parameters_are_those_of_the_built_model():
    from megatron_cod.estimate.parameters import model_count

    shape = Shape(8, 96, 304, 6)
    flags = ["--recipe", str(ROOT / "recipes" / "debug.yaml"), *shape.flags(), "--norm-scheme", "lns"]
    from megatron_cod.rehearsal.launch import read_launch

    args = read_launch([*flags, "--mock-data"], 1).args
    embeddings = 2 * args.padded_vocab_size * shape.hidden
    assert model_count(args).total == shape.non_embedding + embeddings


def test_std_follows_the_width_and_budget_the_parameters(tmp_path):
    study = study_of(tmp_path, steps=None, **{"tokens-per-parameter": 20, "flags": {"global-batch-size": 8}})
    (shape,) = study.shapes
    assert study.std_of(shape) == pytest.approx(0.02 * math.sqrt(1000 / shape.hidden), rel=1e-3)
    assert study.steps_of(shape) == math.ceil(20 * shape.non_embedding / (8 * 128))
    assert study_of(tmp_path, **{"init-std": 0.03}).std_of(shape) == 0.03


@pytest.mark.slow
def test_an_arm_may_be_a_scheme_of_the_users_own(tmp_path):
    """In a process of its own: a scheme that is registered stays so."""
    study_of(tmp_path)  # writes a file
    file = tmp_path / "study.yaml"
    arms = {"arms": ["fading+fading-rate=2"], "flags": {"import": "fading"}}
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **arms}))
    code = f"from megatron_cod.study.study_file import *; print(read_study(Path({str(file)!r})).arms)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    outside = ROOT / "tests" / "schemes" / "outside"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=outside, env=environment, timeout=120
    )
    assert "fading+fading-rate=2" in done.stdout, done.stderr


def test_flags_of_a_run_are_flags_of_the_program(tmp_path):
    study = study_of(tmp_path)
    flags = flags_of(study, Job(study.shapes[0], "pre_ln+scaled", 1.6e-2, 11), tmp_path, "text")
    args = build_parser().parse_args(flags)
    assert (args.lr, args.min_lr, args.seed, args.init_policy) == (1.6e-2, 1.6e-3, 11, "scaled")
    assert args.full_validation and args.eval_interval == args.train_iters == 10


def test_changed_study_does_not_mix_with_old_runs(tmp_path):
    root = tmp_path / "out"
    StudyDirectory(root, study_of(tmp_path)).bind()
    StudyDirectory(root, study_of(tmp_path)).bind()  # the same one goes on
    for changes, text in (
        ({"seeds": [11, 12]}, "seeds was [11, 12, 13], and is now [11, 12]"),
        ({"learning-rates": [2e-3, 4e-3]}, "grid: rates was"),
        ({"rule": {"standard-errors": 1}}, "rule: standard_errors was 2.0, and is now 1.0"),
        ({"flags": {"clip-grad": 0.5}}, "recipe: clip-grad was 1.0, and is now 0.5"),
    ):
        with pytest.raises(UserError) as error:
            StudyDirectory(root, study_of(tmp_path, **changes)).bind()
        assert "belongs to another study" in str(error.value) and text in str(error.value)
        assert "\n" not in str(error.value)


def test_rejects_another_text_and_a_foreign_folder(tmp_path):
    root = tmp_path / "out"
    directory = StudyDirectory(root, study_of(tmp_path))
    directory.bind()
    data = root / "data" / "sotu_train_text_document.bin"
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    with pytest.raises(UserError, match="another text"):
        directory.bind()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no study"):
        StudyDirectory(tmp_path / "full", study_of(tmp_path)).bind()


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_are_read(file):
    study = read_study(file)
    if file.stem == "complete_p_depth":  # of one scheme's claim; all others compare LNS with both baselines
        expected = {"pre_ln+normal", "complete_p+complete-p-base-layers=4+complete-p-base-hidden-size=64"}
    else:
        expected = {"pre_ln+normal", "pre_ln+scaled", "lns", "lns+scaled"}
    assert expected <= set(study.arms)
