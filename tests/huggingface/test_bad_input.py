"""Bad input: one line that names what is wrong, and nothing under the final name."""

import errno
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from megatron_cod.huggingface import atomic_directory
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.importing import ImportJob, import_model
from tests.huggingface.models import make_model, same_tensors, tensors
from tests.programs import run_program


@pytest.fixture
def model(tmp_path):
    return make_model("llama", tmp_path / "hf")


def refused(model, said, **options):
    output = model.parent / "out"
    with pytest.raises(ValueError, match=said):
        import_model(ImportJob(model, output, **options))
    assert not output.exists()


def change_config(model, **changes):
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(model, change):
    held = tensors(model)
    change(held)
    save_file(held, model / "model.safetensors")


def test_every_missing_and_extra_tensor_is_named(model):
    def change(held):
        del held["model.layers.0.self_attn.q_proj.weight"], held["model.norm.weight"]
        held["model.layers.0.self_attn.q_proj.lora"] = torch.zeros(2)

    change_tensors(model, change)
    refused(
        model,
        r"missing: model.layers.0.self_attn.q_proj.weight, model.norm.weight; not known in llama: "
        r"model.layers.0.self_attn.q_proj.lora",
    )


def test_names_wrong_shapes(model):
    change_tensors(model, lambda held: held.update({"model.norm.weight": torch.ones(31)}))
    refused(model, r"model.norm.weight is \[31\], the config has \[32\]")


def test_rejects_integers(model):
    change_tensors(model, lambda held: held.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}))
    refused(model, "model.norm.weight does not hold plain floating-point numbers")


def test_an_unknown_architecture_names_the_known(model):
    change_config(model, model_type="gpt_neox")
    refused(model, "unknown architecture 'gpt_neox'; known are llama, mistral, qwen2, qwen3, smollm3, phi3")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias and mlp_bias differ"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "RoPE scaling 'dynamic' is unknown"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0}}, "low_freq_factor 2.0"),
        ({"quantization_config": {"bits": 4}}, "quant_method None"),
        ({"num_hidden_layers": None}, "does not set num_hidden_layers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_names_unsupported_parts(model, changes, said):
    change_config(model, **changes)
    refused(model, said)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "deepseek v2",
            {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 1},
            "chooses 2 experts of 1 groups: Megatron ranks a group by the sum of its best 2",
        ),
        ("deepseek v2", {"topk_method": "greedy_limited"}, "topk_method 'greedy_limited'"),
        ("deepseek v2", {"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-05"),
        ("deepseek v3", {"num_experts_per_tok": 4, "topk_group": 1}, "chooses 4 experts of 1 groups"),
        ("qwen3", {"attention_bias": True}, "attention_bias True"),
    ],
)
def test_variants_that_megatron_does_not_compute(tmp_path, name, changes, said):
    model = make_model(name, tmp_path / "hf")
    change_config(model, **changes)
    refused(model, said)


def test_rejects_half_written_sources(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(model, "model.safetensors is damaged or half-written")
    path.unlink()
    refused(model, "holds none of model.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x-1.safetensors"}}))
    refused(model, "half-written: x-1.safetensors missing")
    (model / "config.json").unlink()
    refused(model, "config.json is missing")


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("kind", ["code", "other", "plain pickle"])
def test_pickles_that_are_no_plain_tensors(model, kind, capsys):
    (model / "model.safetensors").unlink()
    path = model / "pytorch_model.bin"
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps({"a": Evil()}))
    else:
        torch.save({"a": Evil()} if kind == "code" else [1, 2], path)
    refused(model, "plain tensors")
    assert "executed" not in capsys.readouterr().out


def test_rejects_contradictory_options(model):
    refused(model, "--padded-vocab-size 100 is less than the model's 128", padded_vocab=100)
    import_model(ImportJob(model, model.parent / "lns", as_scheme="lns"))
    export_model(ExportJob(model.parent / "lns", model.parent / "folded"))
    refused(model.parent / "folded", "--unfolded-lns: .* records that", unfolded_lns=True)


def test_an_output_that_exists_is_unchanged(model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ValueError, match="exists already"):
        import_model(ImportJob(model, tmp_path / "out"))
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_rejects_full_disk(model, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr(atomic_directory.shutil, "disk_usage", lambda _: usage)
    refused(model, r"GB more, the disk has 0.00 GB free")
    assert not (tmp_path / "out.part").exists()
    monkeypatch.undo()
    import_model(ImportJob(model, tmp_path / "megatron"))
    monkeypatch.setattr(atomic_directory.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"disk has 0\.00 GB free"):
        export_model(ExportJob(tmp_path / "megatron", tmp_path / "back"))
    assert not (tmp_path / "back").exists() and not (tmp_path / "back.part").exists()


@pytest.mark.parametrize("way", ["import", "export"])
def test_the_disk_fills_up_while_writing(model, tmp_path, monkeypatch, way):
    import_model(ImportJob(model, tmp_path / "megatron"))

    def full(*_args, **_more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file")

    monkeypatch.setattr(atomic_directory.PartialDirectory, "mark", full)
    with pytest.raises(OSError, match="No space left"):
        if way == "import":
            import_model(ImportJob(model, tmp_path / "out"))
        else:
            export_model(ExportJob(tmp_path / "megatron", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_checks_and_writes_nothing(model, tmp_path):
    assert import_model(ImportJob(model, tmp_path / "out", dry_run=True)).bytes > 0
    import_model(ImportJob(model, tmp_path / "megatron"))
    export_model(ExportJob(tmp_path / "megatron", tmp_path / "out", dry_run=True))
    assert not list(tmp_path.glob("out*"))
    change_tensors(model, lambda held: held.pop("model.norm.weight"))
    refused(model, "missing: model.norm.weight", dry_run=True)


@pytest.mark.parametrize("fault", ["none", "empty", "truncated"])
def test_checkpoints_that_are_not_whole(model, tmp_path, fault):
    folder = tmp_path / "megatron"
    if fault == "none":
        folder.mkdir()
    else:
        import_model(ImportJob(model, folder))
    if fault == "empty":
        (folder / "release" / "__0_0.distcp").unlink()
    if fault == "truncated":
        path = folder / "release" / "__0_0.distcp"
        path.write_bytes(path.read_bytes()[:-50])
    said = {"none": "holds no finished", "empty": "is missing", "truncated": "bytes of"}
    with pytest.raises(ValueError, match=said[fault]):
        export_model(ExportJob(folder, tmp_path / "back"))
    assert not (tmp_path / "back").exists()


def test_a_family_that_does_not_fit(model, tmp_path):
    import_model(ImportJob(model, tmp_path / "megatron"))
    with pytest.raises(
        ValueError, match="qwen3 does not compute this model; llama, mistral, smollm3, phi3, granite, glm, gemma does"
    ):
        export_model(ExportJob(tmp_path / "megatron", tmp_path / "back", family="qwen3"))


class Interrupted(Exception):
    pass


@pytest.mark.slow_except("import")
@pytest.mark.parametrize("way", ["import", "export"])
def test_interrupted_conversion_is_resumed(model, tmp_path, monkeypatch, way):
    """Killed in the middle: nothing under the final name; again, what was written is kept; the same result."""
    import_model(ImportJob(model, tmp_path / "megatron", file_bytes=20_000))
    export_model(ExportJob(tmp_path / "megatron", tmp_path / "hf2", shard_bytes=20_000))

    def convert(name):
        if way == "import":
            import_model(ImportJob(model, tmp_path / name, file_bytes=20_000))
        else:
            export_model(ExportJob(tmp_path / "megatron", tmp_path / name, shard_bytes=20_000))

    marks = []
    right = atomic_directory.PartialDirectory.mark

    def mark(self, name, note):
        right(self, name, note)
        marks.append(name)
        if len(marks) == 3:
            raise Interrupted

    monkeypatch.setattr(atomic_directory.PartialDirectory, "mark", mark)
    with pytest.raises(Interrupted):
        convert("out")
    assert not (tmp_path / "out").exists() and (tmp_path / "out.part").is_dir()
    kept = {name: (tmp_path / "out.part" / name).stat().st_mtime_ns for name in marks}
    first, marks[:] = list(marks), []
    monkeypatch.setattr(
        atomic_directory.PartialDirectory,
        "mark",
        lambda self, name, note: (right(self, name, note), marks.append(name)),
    )
    convert("out")
    assert not set(marks) & set(first) and marks
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in kept.items())
    assert not (tmp_path / "out.part").exists() and not (tmp_path / "out" / "conversion.json").exists()
    if way == "import":
        export_model(ExportJob(tmp_path / "out", tmp_path / "again"))
        assert same_tensors(tensors(tmp_path / "again"), tensors(model))
    else:
        assert same_tensors(tensors(tmp_path / "out"), tensors(model))


def test_another_conversion_does_not_take_up_the_interrupted_one(model, tmp_path):
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "conversion.json").write_text(json.dumps({"job": "another", "done": {}}))
    (tmp_path / "out.part" / "leftover").write_text("x")
    import_model(ImportJob(model, tmp_path / "out"))
    assert not (tmp_path / "out" / "leftover").exists()


def run(*command):
    return run_program("convert_hf.py", *command)


@pytest.mark.slow
def test_tool_reports_errors_in_one_line(model, tmp_path):
    """Both ways from the command line; an error is one line, exit code 2, no traceback."""
    done = run("import", "--model", model, "--output", tmp_path / "megatron", "--as-scheme", "lns")
    assert done.returncode == 0, done.stderr
    assert "llama as lns" in done.stdout
    done = run("export", "--checkpoint", tmp_path / "megatron", "--output", tmp_path / "back", "--dtype", "bfloat16")
    assert done.returncode == 0 and "factors folded into the weights" in done.stdout, done.stderr
    assert {tensor.dtype for tensor in tensors(tmp_path / "back").values()} == {torch.bfloat16}
    done = run("import", "--model", tmp_path / "nowhere", "--output", tmp_path / "x")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if "CUDA" not in line]
    assert len(errors) == 1 and errors[0].startswith("error: ") and "Traceback" not in done.stderr
    assert run("--help").returncode == 0
