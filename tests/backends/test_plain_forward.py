"""The short forward of plain layers: Megatron's numbers to the bit; all that Megatron's may also do is classified."""

import ast
import inspect
import textwrap
from types import SimpleNamespace

import pytest
import torch
from megatron.core.transformer.attention import Attention
from megatron.core.transformer.identity_op import IdentityFuncOp, IdentityOp
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_cod.backends import plain_forward
from megatron_cod.backends.plain_forward import PlainForward, is_plain
from megatron_cod.backends.torch_self_attention import ABSENT, TorchSelfAttention
from tests.distributed.launch import run_ranks

FLAGS = [
    *("--recipe", "recipes/debug.yaml", "--num-layers", "3", "--hidden-size", "32", "--mock-data"),
    *("--ffn-hidden-size", "64", "--seq-length", "32"),
]
SCHEMES = ["pre_ln", "lns", "post_ln", "sandwich_ln", "layerscale", "hyper_connections"]


def _numbers(engine, batch) -> list[torch.Tensor]:
    """Losses in training and evaluation mode, and the gradients of all parameters; every call draws the same dropout."""
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    model_parallel_cuda_manual_seed(7, force_reset_rng=True)
    model = engine.model[0]
    model.zero_grad_buffer()
    engine.forward_backward(batch)
    found = [parameter.main_grad.clone() for _, parameter in engine.parameters()]
    model.eval()
    with torch.no_grad():
        found.append(model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"]).clone())
    model.train()
    return found


def compared(_rank: int, flags: list[str], schemes: list[str], mutate=None) -> dict:
    """Of each scheme: layers with the short forward, and the largest difference from the numbers of Megatron's."""
    from megatron_cod.benchmark import engine as engines

    if mutate is not None:
        mutate()
    args = engines.start_megatron([*FLAGS, *flags], 1)
    batch = engines.random_batches(args, 1)[0][0]
    found = {}
    for scheme in schemes:
        engine = engines.Engine(args, scheme)
        short = _numbers(engine, batch)
        layers = [module for module in engine.model[0].modules() if isinstance(module, TransformerLayer)]
        own = [layer for layer in layers if isinstance(layer.__dict__.pop("forward", None), PlainForward)]
        for layer in layers:
            layer.self_attention._is_plain = layer.self_attention._has_mixed_rows = False
        megatrons = _numbers(engine, batch)
        differences = [float((one - other).abs().max()) for one, other in zip(short, megatrons, strict=True)]
        found[scheme] = len(own), max(differences)
    return found


@pytest.mark.parametrize(
    ("flags", "most"),
    [
        ([], 0.0),
        (["--group-query-attention", "--num-query-groups", "2", "--qk-layernorm"], 0.0),
        (["--hidden-dropout", "0.1"], 0.0),
        (["--attention-dropout", "0.1"], 1e-6),  # torch's attention rounds by how queries lie in memory
    ],
    ids=["plain", "grouped queries", "dropout", "dropout in attention"],
)
def test_numbers_are_megatrons(flags, most):
    schemes = ["lns"] if flags else SCHEMES
    found = run_ranks(1, compared, flags, schemes)[0]
    assert found.keys() == set(schemes)
    assert all(layers == 3 and difference <= most for layers, difference in found.values()), found


def without_the_second_residual() -> None:
    """The mutant: the MLP's branch replaces the stream."""
    right, calls = plain_forward._joined, []

    def joined(layer, join, branch, residual):
        calls.append(1)
        return right(layer, join, branch, residual if len(calls) % 2 else torch.zeros_like(residual))

    plain_forward._joined = joined


def test_detects_a_missing_residual():
    layers, difference = run_ranks(1, compared, [], ["lns"], without_the_second_residual)[0]["lns"]
    assert layers == 3 and difference > 1e-3


@pytest.mark.parametrize(
    "flags",
    [
        ["--recompute-granularity", "selective", "--recompute-modules", "mlp"],
        ["--fp32-residual-connection", "--bf16"],
        ["--mlp-chunks-for-training", "2"],
    ],
    ids=["a part recomputed", "fp32 residual", "chunks"],
)
def test_other_layers_keep_megatrons_forward(flags):
    assert run_ranks(1, compared, flags, ["lns"])[0] == {"lns": (0, 0.0)}


def plain_layer(**changed):
    """What ``is_plain`` reads of a layer."""
    layer = TransformerLayer.__new__(TransformerLayer)
    config = {
        **plain_forward.OF_CONFIG,
        **{name: value for name, value in changed.items() if name in plain_forward.OF_CONFIG},
    }
    cross = {
        "pre_cross_attn_layernorm": IdentityOp(),
        "cross_attn_bda": IdentityFuncOp(),
        "cross_attention": IdentityOp(),
    }
    of_layer = dict.fromkeys(plain_forward.OF_LAYER, False)
    layer.__dict__ |= {**cross, **of_layer, **changed, "config": SimpleNamespace(**config)}
    return layer


OTHER = {
    **dict.fromkeys(plain_forward.OF_LAYER, True),
    **dict.fromkeys(plain_forward.OF_CONFIG, 2),
    **{name: torch.nn.Linear(1, 1) for name in ("pre_cross_attn_layernorm", "cross_attn_bda", "cross_attention")},
}


@pytest.mark.parametrize("name", OTHER)
def test_each_other_feature_is_noticed(name):
    assert is_plain(plain_layer())
    assert not is_plain(plain_layer(**{name: OTHER[name]}))


@pytest.mark.parametrize("method", plain_forward.METHODS)
def test_a_layer_with_code_of_its_own_is_not_plain(method):
    layer = plain_layer()
    layer.__class__ = type("Other", (TransformerLayer,), {method: lambda self: None})
    assert not is_plain(layer)


def test_other_arguments_are_megatrons():
    given = []
    layer = SimpleNamespace(forward=lambda *args, **kwargs: given.append((args, kwargs)))
    PlainForward(layer)("x", rotary_pos_emb="angles", inference_context="context", context=None)
    taken = {"attention_mask": None, "rotary_pos_emb": "angles", "packed_seq_params": None, "padding_mask": None}
    assert given == [(("x",), {**taken, "inference_context": "context", "context": None})]


def read_by(owner: type, methods: tuple[str, ...]) -> set[str]:
    """``self.x`` and ``self.config.x`` in the source of these methods."""
    names = set()
    for method in methods:
        tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(owner, method))))
        texts = (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
        names |= {text.removeprefix("self.") for text in texts if text.startswith("self.")}
    return {name for name in names if name.count(".") == name.startswith("config.")}


COMMON = {"config", "training", "pg_collection"}
OF_LAYER = {
    *("input_layernorm", "self_attention", "self_attn_bda", "pre_mlp_layernorm", "mlp", "mlp_bda", "hidden_dropout"),
    *("config.bias_dropout_fusion", "cross_attention", "cross_attn_bda", "pre_cross_attn_layernorm"),
    *(plain_forward.METHODS[1:]),
    *("bias_dropout_add_exec_handler",),  # enables gradients, which matters to nobody outside training
    *("off_interface", "mlp_norm_manager", "input_layernorm_checkpoint", "pre_mlp_norm_checkpoint"),  # of OF_LAYER's
    *("config.fp8", "config.fp4"),  # read where recompute_mlp is set
    *("config.cuda_graph_impl", "config.cuda_graph_modules"),  # read while a graph is captured
    *("_set_fc2_residual", "_set_proj_residual"),  # of inference_fuse_tp_communication
    *("_maybe_reflatten_from_moe", "_maybe_unflatten_for_moe", "config.transformer_impl"),  # of experts and inference
}
OF_ATTENTION = {
    *("core_attention", "attn_mask_type", "linear_proj", "get_query_key_value_tensors", "layer_number"),
    *("config.no_rope_freq", "config.attention_output_gate", "config.flash_decode", "checkpoint_core_attention"),
    *("offload_qkv_linear", "offload_core_attention", "offload_attn_proj", "config.test_mode"),
    *("_apply_output_gate", "_checkpointed_attention_forward", "flash_decode"),  # of those
    *("config.fused_single_qkv_rope", "q_layernorm", "k_layernorm", "attention_type"),  # no angles of ours, or kept
    *("config.rotary_interleaved", "_yarn_concentration_factor"),  # what rotations are made with
    *("_adjust_key_value_for_inference", "flash_decode_and_prefill", "_get_inference_softmax_offset"),  # of ABSENT's
    *("config.cuda_graph_impl",),
}


def test_all_that_megatrons_layer_reads_is_classified():
    read = read_by(TransformerLayer, plain_forward.METHODS)
    of_config = {f"config.{name}" for name in plain_forward.OF_CONFIG}
    assert read - COMMON == (OF_LAYER | set(plain_forward.OF_LAYER) | of_config)


def test_all_that_megatrons_attention_reads_is_classified():
    assert read_by(Attention, ("forward",)) - COMMON == OF_ATTENTION
    taken = {"self", "hidden_states", "attention_mask", "rotary_pos_emb"}
    assert set(inspect.signature(Attention.forward).parameters) - taken == set(ABSENT)
    assert TorchSelfAttention.forward is not Attention.forward


def test_all_arguments_of_megatrons_layer_are_classified():
    taken = set(inspect.signature(PlainForward.__call__).parameters) - {"self", "others"}
    others = set(inspect.signature(TransformerLayer._forward_attention).parameters) - {"self"} - taken
    assert others == {
        *("context", "context_mask", "rotary_pos_cos", "rotary_pos_sin", "rotary_pos_cos_sin", "attention_bias"),
        *("inference_context", "inference_params", "sequence_len_offset"),
    }
