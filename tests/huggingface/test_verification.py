"""A conversion reads again what it wrote, and refuses what does not load whole or computes something else."""

import json

import pytest
import torch

from megatron_cod.errors import Phase, UserError, ending
from megatron_cod.huggingface import export, recipe, safetensors_writer, verification
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.importing import ImportJob, import_model
from tests.huggingface.megatron import ONE, megatron_logits
from tests.huggingface.models import make_model, transformers_logits


def megatron(folder, ids):
    """As ``training.loading.megatron_logits``, in a process of its own: a test process has one Megatron."""
    run = folder if (folder / "recipe.yaml").is_file() else folder.parent
    return megatron_logits(run, ONE, ids)


def nothing_left(folder):
    return not list(folder.parent.glob(folder.name + "*"))


@pytest.mark.parametrize(("name", "dtype"), [("llama", "bfloat16"), ("mixtral", None), ("deepseek v3", "float16")])
@pytest.mark.slow_except("mixtral-None")
def test_a_right_conversion_is_verified(tmp_path, name, dtype):
    make_model(name, tmp_path / "hf")
    said: list[str] = []
    import_model(ImportJob(tmp_path / "hf", tmp_path / "lns", as_scheme="lns"), said.append, megatron)
    export_model(ExportJob(tmp_path / "lns", tmp_path / "back", dtype=dtype), said.append, megatron)
    lines = [line for line in said if line.startswith("verified: ")]
    assert [line.split(":")[1].split(",")[0] for line in lines] == [
        " transformers and Megatron",
        " Megatron and transformers",
    ]


def test_an_import_of_another_function_is_refused(tmp_path, monkeypatch):
    make_model("llama", tmp_path / "hf")
    right = recipe.recipe_of
    monkeypatch.setattr("megatron_cod.huggingface.importing.recipe_of", lambda arch: {**right(arch), "rotary-base": 10})
    with pytest.raises(UserError, match=r"transformers and Megatron: .* another function"):
        import_model(ImportJob(tmp_path / "hf", tmp_path / "out"), megatron=megatron)
    assert nothing_left(tmp_path / "out")


@pytest.fixture
def imported(tmp_path):
    """A checkpoint, and what its model computes: transformers' function, which other tests compare."""
    make_model("llama", tmp_path / "hf")
    import_model(ImportJob(tmp_path / "hf", tmp_path / "megatron"))
    return tmp_path / "megatron", lambda _folder, ids: transformers_logits(tmp_path / "hf", ids)


def refused(checkpoint, logits, said, **options):
    output = checkpoint.parent / "out"
    with pytest.raises(UserError, match=said):
        export_model(ExportJob(checkpoint, output, **options), megatron=logits)
    assert nothing_left(output)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("changed", [{"rms_norm_eps": 1e-2}, {"rope_theta": 100.0}, {"num_key_value_heads": 4}])
@pytest.mark.slow_except("changed2-None")
def test_an_export_of_another_function_is_refused(imported, monkeypatch, dtype, changed):
    checkpoint, logits = imported
    export_model(ExportJob(checkpoint, checkpoint.parent / "right", dtype=dtype), megatron=logits)
    right = export.config_of
    monkeypatch.setattr(export, "config_of", lambda arch: {**right(arch), **changed})
    heads = "num_key_value_heads" in changed
    refused(checkpoint, logits, "does not load" if heads else "another function", dtype=dtype)


def test_newly_initialised_tensors_are_refused(imported, monkeypatch):
    checkpoint, _ = imported
    right = export.config_of
    monkeypatch.setattr(export, "config_of", lambda arch: {**right(arch), "num_hidden_layers": arch.layers + 1})
    refused(checkpoint, None, r"does not load whole in transformers \(missing: model.layers.4.* and 5 more")


@pytest.mark.parametrize("verify", [True, False])
def test_a_tensor_that_was_not_written_is_refused(imported, monkeypatch, verify):
    checkpoint, _ = imported
    right = safetensors_writer._header
    monkeypatch.setattr(safetensors_writer, "_header", lambda shard: right(shard[:-1] if len(shard) > 1 else shard))
    refused(checkpoint, None, "damaged|does not hold what was written: lm_head", verify=verify)


def test_rejects_wrongly_written_tensor(imported, monkeypatch):
    """Of rounded weights the files are compared bit by bit."""
    checkpoint, logits = imported
    right = safetensors_writer._write

    def write(file, parcel, wrote):
        make = (lambda: [one + 1 for one in parcel.make()]) if "model.norm.weight" in parcel.names else parcel.make
        right(file, safetensors_writer.Parcel(parcel.names, parcel.shapes, parcel.dtypes, make, parcel.exact), wrote)

    monkeypatch.setattr(safetensors_writer, "_write", write)
    refused(checkpoint, logits, "model.norm.weight is not what was made", dtype="bfloat16")


def test_reports_too_little_memory(imported, monkeypatch):
    checkpoint, logits = imported
    monkeypatch.setattr(verification, "_available", lambda: 1 << 20)
    said: list[str] = []
    export_model(ExportJob(checkpoint, checkpoint.parent / "out"), said.append, logits)
    assert any(
        line.startswith("not verified: it takes 1.1 GB of memory (8 bytes a parameter), 0.0 GB") for line in said
    )


def test_reports_model_that_is_not_built(imported):
    checkpoint, _ = imported

    def unknown(_folder, _ids):
        raise UserError("no recipe")

    said: list[str] = []
    export_model(ExportJob(checkpoint, checkpoint.parent / "out"), said.append, unknown)
    assert any(
        "loads whole in transformers; not compared with Megatron's model, which is not built here: no recipe" in line
        for line in said
    )


REASONS = [
    UserError("no recipe"),
    MemoryError("none left"),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]
FAULTS = [ValueError("planted"), AssertionError(), KeyError("decoder"), RuntimeError("shapes cannot be multiplied")]


def raising(error):
    def logits(_folder, _ids):
        raise error

    return logits


@pytest.mark.parametrize("error", REASONS, ids=repr)
@pytest.mark.parametrize("direction", ["import", "export"])
@pytest.mark.slow_except("import-MemoryError('none left')", "export-UserError('no recipe')")
def test_what_this_machine_lacks_leaves_the_result_uncompared(direction, error, imported):
    checkpoint, _ = imported
    said: list[str] = []
    convert(direction, checkpoint, said.append, raising(error))
    assert any("not built here" in line for line in said)
    assert (checkpoint.parent / "out").is_dir()


@pytest.mark.parametrize("error", FAULTS, ids=repr)
@pytest.mark.parametrize("direction", ["import", "export"])
@pytest.mark.slow_except("import-ValueError('planted')", "export-AssertionError()")
def test_a_fault_while_comparing_is_not_taken_for_what_is_lacking(direction, error, imported):
    checkpoint, _ = imported
    with pytest.raises(type(error)) as raised:
        convert(direction, checkpoint, lambda _: None, raising(error))
    assert raised.value is error and ending(error, Phase.TOOL).is_fault
    assert not (checkpoint.parent / "out").exists()


def convert(direction, checkpoint, log, logits):
    if direction == "import":
        import_model(ImportJob(checkpoint.parent / "hf", checkpoint.parent / "out"), log, logits)
    else:
        export_model(ExportJob(checkpoint, checkpoint.parent / "out"), log, logits)


@pytest.mark.parametrize("found", [torch.nan, 1.0002])
def test_compares_relative_to_largest_logit(found):
    expected = torch.ones(1, 4, 8)
    other = expected.clone()
    other[0, 2, 3] = found
    verification.compare(expected, expected + 5e-5, "both")
    with pytest.raises(UserError, match="another function"):
        verification.compare(expected, other, "both")


def test_missing_tensors_are_named_in_a_short_line(tmp_path):
    make_model("llama", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 400}))
    with pytest.raises(UserError, match=r"missing: .* and 3,560 more") as short:
        import_model(ImportJob(tmp_path / "hf", tmp_path / "out"))
    assert len(str(short.value)) < 500
    import_model(ImportJob(make_model("llama", tmp_path / "whole"), tmp_path / "megatron"))
    with pytest.raises(UserError, match=r"has no place in the llama architecture; .* and 26 more|is missing") as short:
        _check_with_more_layers(tmp_path / "megatron" / "release")
    assert len(str(short.value).replace(str(tmp_path), "")) < 650


def _check_with_more_layers(path):
    from dataclasses import replace

    from megatron_cod.huggingface.checkpoint import MegatronCheckpoint
    from megatron_cod.huggingface.families.mapping_rows import units
    from megatron_cod.huggingface.families.table import get_family
    from megatron_cod.huggingface.megatron_args import architecture_of_args

    opened = MegatronCheckpoint(path)
    arch, _ = architecture_of_args(opened.args)
    longer = replace(arch, layers=400)
    opened.check(list(units(get_family("llama").rows, longer)), longer)
