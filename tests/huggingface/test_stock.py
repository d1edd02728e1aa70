"""What a checkpoint records of its built model: every field has a place in the export, or is refused by name."""

from argparse import Namespace

import pytest

from megatron_cod.checkpoint.function_fields import FUNCTION, TENSORS
from megatron_cod.checkpoint.function_record import RECORD, flag_of
from megatron_cod.errors import UserError
from megatron_cod.huggingface import checkpoint, stock
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.importing import ImportJob, import_model
from megatron_cod.huggingface.recipe import namespace_of, recipe_of
from megatron_cod.huggingface.stock import CARRIED, FOLDED, STOCK, WITHOUT_EFFECT, fields_of
from tests.huggingface.megatron import ONE, megatron_logits
from tests.huggingface.models import make_model, tokens, transformers_logits

FREE = [name for names in WITHOUT_EFFECT.values() for name in names.split()]


def test_every_recorded_field_has_one_place():
    """A field that Megatron adds fails in test_function_record first, and then here."""
    placed = [*CARRIED, *FOLDED, *STOCK, *FREE]
    assert len(placed) == len(set(placed)), "in two places"
    assert set(placed) == TENSORS | FUNCTION


@pytest.fixture(scope="module")
def args(tmp_path_factory):
    """The arguments of an imported Llama, and as its record what they come to."""
    import megatron_cod.training.before_megatron  # noqa: F401
    from megatron_cod.huggingface.families.table import architecture_of
    from tests.huggingface.models import BASE

    arch, _ = architecture_of({**BASE, "model_type": "llama"})
    found = namespace_of(recipe_of(arch))
    return Namespace(**{**vars(found), RECORD: stock._from_arguments(found)})


def recording(args, **changes):
    return Namespace(**{**vars(args), RECORD: {**getattr(args, RECORD), **changes}})


@pytest.mark.parametrize("name", STOCK)
def test_a_value_that_no_stock_model_has_is_refused_by_name(args, name):
    fields_of(args)
    with pytest.raises(UserError, match="no stock model computes") as refused:
        fields_of(recording(args, **{name: "another"}))
    assert flag_of(name) in str(refused.value) and "another" in str(refused.value)


def test_a_field_without_a_place_is_refused(args):
    with pytest.raises(UserError, match=r"records logit_softcapping 30\.0, of which the export does not know"):
        fields_of(recording(args, logit_softcapping=30.0))


def test_the_record_counts_and_not_the_arguments(args):
    assert fields_of(recording(args, layernorm_epsilon=1e-3)).layernorm_epsilon == 1e-3
    with pytest.raises(UserError, match="--use-mup by a version that did not record"):
        fields_of(Namespace(**{**vars(args), RECORD: None, "use_mup": True}))


MUP = {
    "llama": ["--mup-base-hidden-size", "16"],
    "llama tied": ["--mup-base-hidden-size", "16", "--mup-embedding-mult", "3"],
    "qwen3": ["--mup-base-hidden-size", "8", "--mup-base-head-dim", "4"],
    "llama biases": ["--mup-base-hidden-size", "16", "--mup-attn-scale-power", "0.8", "--mup-output-mult", "0.7"],
    "qwen2": ["--mup-base-hidden-size", "64", "--mup-embedding-mult", "0.5"],
}


@pytest.mark.parametrize("name", MUP)
@pytest.mark.slow
def test_mups_multipliers_are_in_the_exported_weights(tmp_path, monkeypatch, name):
    from megatron_cod.training.pretraining import TASK
    from megatron_cod.training.start.prepare import prepare

    make_model(name, tmp_path / "hf")
    import_model(ImportJob(tmp_path / "hf", tmp_path / "megatron"))
    flags = ["--use-mup", *MUP[name]]
    trained = [
        *("--recipe", str(tmp_path / "megatron" / "recipe.yaml"), "--mock-data", "--train-iters", "1", "--lr", "1e-3")
    ]
    trained += ["--micro-batch-size", "1", "--global-batch-size", "1", "--eval-iters", "0", *flags]
    record = prepare(trained, TASK, 1, frozenset(), set_globals=False, quiet=True).args.model_function
    right = checkpoint.Checkpoint.common_state

    def recorded(self):
        state = right(self)
        setattr(state["args"], RECORD, record)
        return state

    monkeypatch.setattr(checkpoint.Checkpoint, "common_state", recorded)
    export_model(ExportJob(tmp_path / "megatron", tmp_path / "back"))
    theirs = transformers_logits(tmp_path / "back", tokens())
    ours = megatron_logits(tmp_path / "megatron", ONE, tokens(), *flags, "--override-model-check")
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max()))
    plain = transformers_logits(tmp_path / "hf", tokens())
    assert (plain - theirs).abs().max() > 1e-2, "the multipliers do nothing"
