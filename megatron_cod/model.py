"""From parsed arguments to the model configuration that megatron.training builds."""

from argparse import Namespace
from functools import partial
from typing import Any

from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.training.argument_utils import gpt_config_from_args
from megatron.training.models import GPTModelConfig

from megatron_cod.depth_map import refuse_wrong_depth
from megatron_cod.layer_specs import refuse_unsupported, scheme_block_spec, unsupported_features
from megatron_cod.schemes.init_policy import apply_init_policy, resolve_init_policy
from megatron_cod.schemes.table import get_scheme


def _layer_spec(
    model_config: GPTModelConfig, vp_stage: int | None = None, *, scheme: str
) -> TransformerBlockSubmodules:
    """The callable that Megatron's builder asks for the layers of one chunk."""
    return scheme_block_spec(model_config.transformer, scheme, vp_stage=vp_stage)


def attach_scheme(config: GPTModelConfig, scheme: str, init_policy: str | None) -> str:
    """Put a scheme, its initialisation and the depth check on ``config`` in place; returns the line for the log.

    The scheme is laid over Megatron's spec on the torch backend (``--transformer-impl local``); what it cannot carry is
    refused with a ValueError. ``pre_ln`` is left to Megatron there, and on every other backend.
    """
    policy, line = resolve_init_policy(scheme, init_policy)
    apply_init_policy(config.transformer, policy)
    row = get_scheme(scheme)
    if row.scales_input_norms:
        if config.transformer_layer_spec is not None:
            raise ValueError("--spec and --norm-scheme both name the layers; give one of them")
        refuse_unsupported(config.transformer, row)  # now, not when the model is built
    if row.scales_input_norms or not (config.transformer_layer_spec or unsupported_features(config.transformer)):
        config.transformer_layer_spec = partial(_layer_spec, scheme=scheme)
    config.post_wrap_hooks.append(refuse_wrong_depth)
    return line


def model_config_from_args(args: Namespace) -> tuple[GPTModelConfig, str]:
    """Megatron's model configuration with our scheme on it, and the log line about initialisation."""
    config: Any = gpt_config_from_args(args)
    line = attach_scheme(config, args.norm_scheme, args.init_policy)
    return config, line
