"""A consumer that is not transformers: an exported LNS model in llama.cpp, through GGUF.

llama.cpp comes with the package llama-cpp-python, GGUF is written with llama.cpp's own gguf package. The writing here does
what llama.cpp's converter does to a Llama, by hand: its names, and rotary channels in pairs instead of halves.
"""

import importlib.util
import json

import pytest
import torch

from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.huggingface.importing import ImportJob, import_model
from tests.distributed.launch import run_ranks
from tests.huggingface.models import make_model, tensors, tokens, transformers_logits

MISSING = [name for name in ("gguf", "llama_cpp") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install -e '.[consumers]')"
)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in OUTSIDE:
        return OUTSIDE[stem] + ".weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def write_gguf(folder, path) -> None:
    """An exported Llama directory as GGUF, fp32, without a tokenizer."""
    from gguf import GGUFWriter

    config = json.loads((folder / "config.json").read_text())
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, tensor in tensors(folder).items():
        if ".q_proj." in name or ".k_proj." in name:
            heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            rows, columns = tensor.shape
            tensor = tensor.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
        writer.add_tensor(gguf_name(name), tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp_logits(_rank: int, path: str, ids: list[int]) -> torch.Tensor:
    """[s, v] by llama.cpp on the CPU, keys and values in fp32. In a process of its own: its errors end the process."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    assert model
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 128
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = params.flash_attn_type = 0  # fp32, and no kernel with fp16 inside
    context = llama_cpp.llama_init_from_model(model, params)
    assert context
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, 1
    assert llama_cpp.llama_decode(context, batch) == 0
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    return torch.tensor([llama_cpp.llama_get_logits_ith(context, i)[:size] for i in range(len(ids))])


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A Llama whose Megatron checkpoint is LNS, exported again with the factors folded; and the same unfolded."""
    from tests.huggingface.models import MODELS

    folder = tmp_path_factory.mktemp("served")
    MODELS["wide"] = ("LlamaForCausalLM", {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6})
    make_model("wide", folder / "hf")
    del MODELS["wide"]
    import_model(ImportJob(folder / "hf", folder / "lns", as_scheme="lns"))
    export_model(ExportJob(folder / "lns", folder / "folded"))
    export_model(ExportJob(folder / "lns", folder / "unfolded", fold=False))
    return folder


def test_llama_cpp_computes_the_exported_model(served):
    write_gguf(served / "folded", served / "folded.gguf")
    ids = tokens()[:1]
    (found,) = run_ranks(1, llama_cpp_logits, str(served / "folded.gguf"), ids[0].tolist())
    theirs = transformers_logits(served / "folded", ids)[0]
    assert theirs.abs().max() > 0.5
    assert (found - theirs).abs().max() <= 1e-4
    # The control: without the factors in the gammas it is another model.
    write_gguf(served / "unfolded", served / "unfolded.gguf")
    (other,) = run_ranks(1, llama_cpp_logits, str(served / "unfolded.gguf"), ids[0].tolist())
    assert (other - theirs).abs().max() > 1e-2
