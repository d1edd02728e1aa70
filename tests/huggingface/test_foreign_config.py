"""A config is read as the installed transformers reads it: its defaults, its spellings, its lists of layers."""

import json

import pytest
import yaml

from megatron_cod.errors import UserError
from megatron_cod.huggingface import foreign_config
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.families.config_fields import FREE, READ
from megatron_cod.huggingface.families.table import FAMILIES
from megatron_cod.huggingface.foreign_config import read_config
from megatron_cod.huggingface.importing import ImportJob, import_model
from tests.huggingface.models import LLAMA3, YARN, make_model, tokens, transformers_logits


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_a_familys_class_is_read_or_free(family):
    """A field that a later transformers adds fails here, and is refused by name until it is classified."""
    from transformers import CONFIG_MAPPING

    own = FAMILIES[family]
    assert set(CONFIG_MAPPING[family]().to_dict()) - READ - FREE - own.reads - own.free == set()
    sets = (READ, FREE, own.reads, own.free)
    assert sum(map(len, sets)) == len(frozenset().union(*sets))


def written(tmp_path, name, *, without=(), **changes):
    folder = make_model(name, tmp_path / "hf")
    path = folder / "config.json"
    held = {key: value for key, value in json.loads(path.read_text()).items() if key not in without}
    path.write_text(json.dumps({**held, **changes}))
    return folder


SAME = {
    # rope_scaling beside rope_parameters, as model cards tell: it replaces them, and their theta.
    "linear": ("llama", (), {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama3": ("llama", (), {"rope_scaling": {**LLAMA3, "factor": 8.0}, "max_position_embeddings": 131072}),
    "linear, in the old spelling": ("qwen2", (), {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "yarn": ("deepseek v2", (), {"rope_scaling": YARN}),
    "yarn with a factor of the attention": (
        "llama",
        (),
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "attention_factor": 1.05,
            }
        },
    ),
    # What a config omits, its class fills in.
    "no epsilon": ("llama", ("rms_norm_eps",), {}),
    "no RoPE": ("mixtral", ("rope_parameters",), {}),
    "no factor of experts": ("deepseek v3", ("routed_scaling_factor", "norm_topk_prob"), {}),
    "no kind of layers": ("qwen3", ("layer_types", "use_sliding_window"), {}),
    "no window in use": ("qwen3", (), {"sliding_window": 4, "max_window_layers": 0}),
    "no list of layers without RoPE": ("smollm3", ("no_rope_layers",), {"no_rope_layer_interval": 2}),
    "experts in every layer": ("qwen3 moe", ("mlp_only_layers", "decoder_sparse_step"), {}),
    "linear, where all layers have one RoPE": (
        "gemma3",
        (),
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            }
        },
    ),
    "a part of each head, scaled": (
        "glm4",
        (),
        {
            "rope_parameters": {
                "rope_type": "linear",
                "factor": 2.0,
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    "full layers only": ("qwen3", (), {"sliding_window": 4, "layer_types": ["full_attention"] * 4}),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.slow_except("full layers only", "no list of layers without RoPE")
def test_the_function_is_transformers(tmp_path, name):
    model, without, changes = SAME[name]
    source = written(tmp_path, model, without=without, **changes)
    import_model(ImportJob(source, tmp_path / "megatron"))
    export_model(ExportJob(tmp_path / "megatron", tmp_path / "back"))
    theirs, ours = (transformers_logits(folder, tokens()) for folder in (source, tmp_path / "back"))
    assert (theirs - ours).abs().max() <= 1e-5


REFUSED = {
    "yarn without its factors": (
        "deepseek v2",
        {"rope_scaling": {**YARN, "mscale": None, "mscale_all_dim": None}},
        "only known with mscale",
    ),
    "yarn of another length": (
        "deepseek v2",
        {"rope_scaling": {**YARN, "original_max_position_embeddings": 8192}},
        "original_max_position_embeddings 8192",
    ),
    "a factor of the attention": (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.5}},
        "attention_factor 0.5",
    ),
    "part of a head": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    "a key of RoPE": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "bent": 1}}, "RoPE with bent"),
    "another kind of layer": (
        "qwen3",
        {"layer_types": ["full_attention"] * 3 + ["chunked_attention"]},
        "chunked_attention",
    ),
    "RoPE with a factor a channel": (
        "phi3",
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}},
        "longrope",
    ),
    "part of a fused head": (
        "phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}},
        "partial_rotary_factor 0.75",
    ),
    "experts in every second layer": ("qwen3 moe", {"decoder_sparse_step": 2}, "decoder_sparse_step 2"),
    "a dense layer among experts": ("qwen3 moe", {"mlp_only_layers": [2]}, r"mlp_only_layers \[2\]"),
    "a short list of RoPE": ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers of 2 layers"),
    "a short list": ("qwen3", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    "a text for a number": ("llama", {"hidden_size": "32"}, "hidden_size"),
    "interleaved or not": ("deepseek v3", {"rope_interleave": False}, "rope_interleave False"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rejects_unsupported_keys_by_name(tmp_path, name):
    model, changes, said = REFUSED[name]
    with pytest.raises(UserError, match=said):
        import_model(ImportJob(written(tmp_path, model, **changes), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_field_that_a_later_transformers_adds_is_refused(tmp_path, monkeypatch):
    folder = written(tmp_path, "llama", pretraining_tp=2)
    read_config(folder)
    monkeypatch.setattr(foreign_config, "FREE", FREE - {"pretraining_tp"})
    with pytest.raises(UserError, match="pretraining_tp 2, which is not known"):
        read_config(folder)


def test_keys_that_transformers_does_not_read_are_named(tmp_path):
    _, notes = read_config(written(tmp_path, "llama", attn_logit_softcapping=30.0, rope_ratio=2))
    assert notes == [
        "transformers does not read these keys of config.json, nor does the import: attn_logit_softcapping, rope_ratio"
    ]


@pytest.mark.parametrize(
    ("name", "without", "changes", "window"),
    [
        ("mistral", ("sliding_window",), {"max_position_embeddings": 8192}, 4096),  # the class's default
        ("qwen3", ("layer_types",), {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}, 64),
        ("qwen2", ("layer_types",), {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 4}, 128),
        ("mixtral", (), {"sliding_window": 32}, 32),
    ],
)
def test_the_window_is_the_one_of_some_layer(tmp_path, name, without, changes, window):
    import_model(ImportJob(written(tmp_path, name, without=without, **changes), tmp_path / "out"))
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["max-position-embeddings"] == window
