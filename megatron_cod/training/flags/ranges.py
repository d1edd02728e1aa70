"""Valid values of flags: finite, not negative and at most 1e12, except where this table has another range.

It holds for Megatron's flags and ours, in recipes and on command lines: a flag that a later Megatron adds is under the
general rule until it has a row here.
"""

from __future__ import annotations

import math
from argparse import Action
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.common.numbers import number_or_nan
from megatron_cod.errors import UserError
from megatron_cod.schemes.options import may_be_negative
from megatron_cod.schemes.table import SCHEMES


def is_finite(value: float) -> bool:
    """Also of integers that no float can hold."""
    return isinstance(value, int) or math.isfinite(value)


_LARGEST = 1e12
"""Of a number without a row of its own. More samples, bytes or steps than that nobody means."""


@dataclass(frozen=True)
class Range:
    """An interval of numbers, which must be finite in any case."""

    low: float = 0.0
    high: float = _LARGEST
    without_low: bool = False
    without_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value lies within."""
        return is_finite(value) and not self._is_low(value) and not self._is_high(value)

    def _is_low(self, value: float) -> bool:
        return value <= self.low if self.without_low else value < self.low

    def _is_high(self, value: float) -> bool:
        return value >= self.high if self.without_high else value > self.high

    def refusal(self, value: float) -> str:
        """What the value must be instead."""
        if not is_finite(value):
            return "must be a finite number"
        bounds = [f"{'above' if self.without_low else 'at least'} {self.low:g}"] if self.low > -_LARGEST else []
        if abs(self.high) != _LARGEST or self._is_high(value):
            bounds.append(f"{'below' if self.without_high else 'at most'} {self.high:g}")
        return f"must be {' and '.join(bounds)}"


NOT_NEGATIVE = Range()
COUNT = Range(1)
NUMBER = Range(1, 1e5)
"""Of layers, heads, experts, ranks: what is listed one by one."""
SIZE = Range(1, 1e8)
SEED = Range(1, 2e9)
"""With what Megatron adds for ranks and stages it fits 32 bits, as numpy asks."""
TIMEOUT = Range(1, 1e7)
WORKERS = Range(0, 1024)
THREADS = Range(1, 1024)
RATE = Range(0, 100)
"""Learning rates, and standard deviations of weights."""
DECAY = Range(0, 1e4)
FACTOR = Range(1, 1e6)
MULTIPLIER = Range(0, 1e6, without_low=True)
POSITIVE = Range(0, without_low=True)
LOSS_SCALE = Range(0.0, 1e38, without_low=True)
ANY = Range(-_LARGEST)
FROM_MINUS_ONE = Range(-1)
SHARE = Range(0, 1)
PART = Range(0, 1, without_low=True)
BELOW_ONE = Range(0, 1, without_high=True)
"""Probabilities of dropping, and decay rates of running means."""

_ROWS: Mapping[Range, str] = {
    NUMBER: """
        num_layers encoder_num_layers decoder_num_layers num_attention_heads num_query_groups num_experts moe_router_topk
        moe_router_num_groups moe_router_group_topk mtp_num_layers tensor_model_parallel_size pipeline_model_parallel_size
        context_parallel_size expert_model_parallel_size expert_tensor_parallel_size num_virtual_stages_per_pipeline_rank
        num_layers_per_virtual_pipeline_stage microbatch_group_size_per_vp_stage recompute_num_layers ddp_num_buckets
        num_distributed_optimizer_instances muon_num_ns_steps hysteresis mamba_num_groups mamba_num_heads
        linear_num_key_heads linear_num_value_heads dsa_indexer_n_heads dsa_indexer_topk_freq moe_layer_freq no_rope_freq
        window_attn_skip_freq linear_attention_freq
        """,
    SIZE: """
        hidden_size ffn_hidden_size kv_channels seq_length max_position_embeddings make_vocab_size_divisible_by vocab_size
        padded_vocab_size moe_ffn_hidden_size moe_latent_size moe_shared_expert_intermediate_size q_lora_rank kv_lora_rank
        qk_head_dim v_head_dim rotary_seq_len_interpolation_factor micro_batch_size global_batch_size eval_micro_batch_size
        eval_global_batch_size yarn_original_max_position_embeddings mup_base_hidden_size mamba_state_dim mamba_head_dim
        linear_conv_kernel_dim linear_key_head_dim linear_value_head_dim dsa_indexer_head_dim dsa_indexer_topk
        relative_attention_num_buckets relative_attention_max_distance
        """,
    COUNT: """
        rotary_base eval_interval log_interval tensorboard_log_interval tensorboard_queue_size save_interval
        save_retain_interval exit_interval ddp_bucket_size train_sync_interval
        check_weight_hash_across_dp_replicas_interval save_params_interval save_wgrads_interval save_dgrads_interval
        save_activations_interval save_tokens_per_expert_interval non_persistent_save_interval
        """,
    SEED: "seed",
    TIMEOUT: "distributed_timeout_minutes distributed_timeout_seconds_after_init",
    WORKERS: "num_workers",
    THREADS: "num_dataset_builder_threads dist_ckpt_workers",
    RATE: "lr min_lr lr_warmup_init decoupled_lr decoupled_min_lr init_method_std embedding_init_method_std",
    DECAY: """
        weight_decay start_weight_decay end_weight_decay moe_aux_loss_coeff moe_z_loss_coeff moe_router_bias_update_rate
        mtp_loss_scaling_factor dsa_indexer_loss_coeff mscale mscale_all_dim
        """,
    FACTOR: "rope_scaling_factor rotary_scaling_factor",
    MULTIPLIER: """
        moe_router_topk_scaling_factor moe_expert_capacity_factor mup_width_mult mup_base_head_dim mup_embedding_mult
        mup_output_mult qk_clip_alpha qk_clip_threshold muon_extra_scale_factor activation_func_clamp_value layerscale_init
        """,
    POSITIVE: "loss_scale_window peak_tflops",
    LOSS_SCALE: "loss_scale initial_loss_scale min_loss_scale",
    BELOW_ONE: """
        attention_dropout hidden_dropout adam_beta1 adam_beta2 sgd_momentum muon_momentum lion_beta1 lion_beta2
        moe_router_quantile_balancing_ema
        """,
    PART: "rotary_percent layernorm_epsilon adam_eps dsa_indexer_k_norm_epsilon",
    SHARE: "lr_warmup_fraction sample_rate optimizer_offload_fraction activation_offload_fraction",
    ANY: "glu_linear_offset mup_attn_scale_power moe_router_force_biased",
    FROM_MINUS_ONE: """
        rl_default_top_k inference_batch_times_seqlen_threshold null_tokenizer_eod_id null_tokenizer_pad_id
        window_size
        """,
}
RANGES: Mapping[str, Range] = {name: one for one, names in _ROWS.items() for name in names.split()}
"""Argument -> its range, where it is not ``NOT_NEGATIVE``."""


def range_of(name: str) -> Range:
    """The range of an argument; options of norm schemes define themselves whether they may be negative."""
    if any(name in may_be_negative(row.options) for row in SCHEMES.values()):
        return ANY
    return RANGES.get(name, NOT_NEGATIVE)


PATTERNS = frozenset(("moe_layer_freq", "no_rope_freq", "window_attn_skip_freq", "linear_attention_freq"))
"""Arguments that are a frequency, or a list of 0 and 1 for the layers."""


def flag_of(action: Action) -> str:
    """The flag of a parser's action, as it is mostly written: the first of its names with the same meaning."""
    plain = "--" + action.dest.replace("_", "-")
    return plain if plain in action.option_strings else action.option_strings[0]


def check_ranges(args: MegatronArgs, actions: Iterable[Action]) -> None:
    """UserError, naming the flag, for a number outside of its range, and for an empty text.

    args: the plain parse. actions: of its parser.
    """
    for action in actions:
        value = getattr(args, action.dest, None)
        if not action.option_strings or (value == action.default and action.dest not in RANGES):
            continue
        if action.nargs is None and value == []:  # what argparse makes of --lr=--
            raise UserError(f"{flag_of(action)} takes a value, not '--'")
        is_list = isinstance(value, list | tuple)
        asked = SHARE if is_list and action.dest in PATTERNS else range_of(action.dest)
        values: Iterable[Any] = value if is_list else (value,)  # type: ignore[assignment]
        for one in values:
            if isinstance(one, str) and not one.strip():
                raise UserError(f"{flag_of(action)} is empty: give a value, or omit the flag")
            _check_number(flag_of(action), one, asked)
    _check_split(args.split)
    _check_heads(args)


def short(value: float) -> str:
    """A number in a line: integers may have thousands of digits."""
    text = str(value)
    return text if len(text) < 40 else f"{text[:20]}..."


def _check_number(flag: str, value: Any, asked: Range) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or asked.holds(value):
        return
    raise UserError(f"{flag} {short(value)} {asked.refusal(value)}")


def _check_split(split: str | None) -> None:
    """UserError for shares of training, validation and test that are invalid."""
    if split is None:
        return
    shares = [number_or_nan(part) for part in split.replace("/", ",").split(",")]
    if not 1 <= len(shares) <= 3 or not all(NOT_NEGATIVE.holds(one) for one in shares) or not sum(shares):
        raise UserError(
            f"--split {split} must be up to three shares, of training, validation and test, such as 969,30,1"
        )


def _check_heads(args: MegatronArgs) -> None:
    heads, groups = args.num_attention_heads, args.num_query_groups
    if args.group_query_attention and heads and heads % groups:
        raise UserError(
            f"--num-query-groups {groups} does not divide --num-attention-heads {heads}: "
            "as many heads must share each key and value"
        )
