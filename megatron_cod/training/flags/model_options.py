"""The options, Megatron's and ours, that define the function of a model: all that evaluation keeps of a run's."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from megatron_cod.schemes.options import CommonOptions, names
from megatron_cod.schemes.table import SCHEMES

_SHAPE = """
num_layers encoder_num_layers decoder_num_layers hidden_size ffn_hidden_size num_attention_heads kv_channels
group_query_attention num_query_groups add_bias_linear add_qkv_bias untie_embeddings_and_output_weights
swiglu squared_relu openai_gelu quick_geglu onnx_safe glu_linear_offset activation_func_clamp_value
vocab_size padded_vocab_size make_vocab_size_divisible_by pad_vocab_size vocab_extra_ids
spec heterogeneous_* hybrid_* is_hybrid_model mamba_head_dim mamba_num_* mamba_state_dim
"""
_POSITIONS = """
max_position_embeddings add_position_embedding position_embedding_type use_rotary_position_embeddings rotary_*
use_rope_scaling rope_* no_rope_freq mrope_section yarn_* mscale mscale_all_dim relative_attention_*
"""
_NORMS = """
normalization layernorm_epsilon layernorm_zero_centered_gamma apply_residual_connection_post_layernorm
norm_scheme init_policy import_modules
"""
_ATTENTION = """
multi_latent_attention q_lora_rank kv_lora_rank qk_head_dim qk_pos_emb_head_dim v_head_dim mla_down_proj_fusion
qk_layernorm qk_l2_norm softmax_type window_size window_attn_skip_freq attention_softmax_in_fp32 attention_backend
apply_query_key_layer_scaling attention_output_gate enable_experimental experimental_attention_variant linear_* dsa_*
"""
# The last two lines are no function of their own: Megatron's checks of the lines above ask for them.
_EXPERTS = """
num_experts moe_layer_freq moe_ffn_hidden_size moe_latent_size moe_shared_expert_intermediate_size moe_shared_expert_gate
moe_router_topk moe_router_pre_softmax moe_router_score_function moe_router_topk_scaling_factor moe_router_dtype
moe_router_num_groups moe_router_group_topk moe_router_enable_expert_bias moe_router_load_balancing_type
moe_expert_capacity_factor moe_pad_expert_input_to_capacity moe_token_drop_policy moe_apply_probs_on_input
moe_grouped_gemm moe_mlp_glu_interleave_size moe_shared_expert_glu_interleave_size mtp_*
moe_token_dispatcher_type moe_flex_dispatcher_backend moe_aux_loss_coeff
moe_router_padding_for_*
"""
_PRECISION = """
bf16 fp16 fp32_residual_connection disable_bf16_reduced_precision_matmul fp16_lm_cross_entropy use_mup mup_*
fp8 fp8_recipe fp8_margin fp8_interval fp8_amax_* fp8_quantizer_factory fp8_output_proj fp4 fp4_recipe fp4_quantizer_factory
first_last_layers_bf16 num_layers_at_* te_precision_config_file use_kitchen_attention kitchen_attention_backend
"""
# Nothing of a trained model hangs on them, but the model is built and filled before it is loaded.
_BUILDING = (
    "init_method_std embedding_init_method_std init_method_xavier_uniform attention_dropout hidden_dropout ckpt_format"
)
MODEL = tuple(" ".join((_SHAPE, _POSITIONS, _NORMS, _ATTENTION, _EXPERTS, _PRECISION, _BUILDING)).split())
"""Options as the arguments have them; a star matches any end."""
TOKENIZER = (
    "tokenizer_*",
    "vocab_file",
    "merge_file",
    "tiktoken_*",
    "null_tokenizer_*",
    "trust_remote_code",
    "allow_ambiguous_*",
)

_OF_OTHER_PROGRAMS = ("sft-", "no-sft-", "train-epochs", "chat-template", "eval-", "no-eval-")
"""Beginnings of keys that fine-tuning and evaluation have, and whose parsers alone know them."""


def scheme_options() -> list[str]:
    """Options of the registered norm schemes."""
    return [name for kind in (*(row.options for row in SCHEMES.values()), CommonOptions) for name in names(kind)]


def matches(option: str, patterns: Iterable[str]) -> bool:
    """Whether an option is among names that may end with a star."""
    return any(option == one or (one.endswith("*") and option.startswith(one[:-1])) for one in patterns)


def keys_beside_the_model(
    recipe: Iterable[str], parser: argparse.ArgumentParser, kept: Sequence[str] = ()
) -> list[str]:
    """Keys of a run's recipe about how and on what machine it was trained, not about what its model computes.

    kept: options to keep besides, as ``MODEL`` has them. A key that the parser does not know is left to it to refuse.
    """
    options = {name.lstrip("-"): action.dest for action in parser._actions for name in action.option_strings}
    known = (*MODEL, *scheme_options(), *kept)
    dropped = []
    for key in recipe:
        option = options.get(key.replace("_", "-"))
        if key.startswith(_OF_OTHER_PROGRAMS) or (option is not None and not matches(option, known)):
            dropped.append(key)
    return dropped
