"""From parsed arguments to the model configuration that megatron.training builds."""

from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.pipeline_parallel.utils import (
    is_pp_first_stage,
    is_pp_last_stage,
    is_vp_first_stage,
    is_vp_last_stage,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training.argument_utils import gpt_config_from_args
from megatron.training.models import GPTModelConfig
from megatron.training.models.gpt import GPTModelBuilder
from megatron.training.vocab_utils import calculate_padded_vocab_size

from megatron_cod.adaptations import cpu
from megatron_cod.args import MegatronArgs
from megatron_cod.backends.choice import get_backend
from megatron_cod.backends.compiled_layers import compile_layers
from megatron_cod.backends.mtp_loss import WeighedMTP
from megatron_cod.backends.plain_forward import use_plain_forward
from megatron_cod.depth_map import refuse_wrong_depth
from megatron_cod.errors import UserError
from megatron_cod.layer_specs import refuse_unsupported, scheme_block_spec, scheme_mtp_spec, unsupported_features
from megatron_cod.schemes.activation import gate_with_gelu
from megatron_cod.schemes.design import BlockDesign, design_from_args, plain_design
from megatron_cod.schemes.init_policy import apply_init_policy, resolve_init_policy
from megatron_cod.schemes.parameter_groups import mark_outside
from megatron_cod.schemes.table import PRE_LN


@dataclass(kw_only=True)
class SchemeModelConfig(GPTModelConfig):
    """Megatron's GPT configuration with the norm scheme that multi-token-prediction layers are to get as well."""

    builder: ClassVar[str] = "megatron_cod.model.SchemeModelBuilder"
    design: BlockDesign = field(default_factory=lambda: plain_design(PRE_LN))
    backend: str | None = None
    """See ``backends.choice.get_backend``."""


class SchemeModelBuilder(GPTModelBuilder):
    """Megatron's builder; with ``--mtp-num-layers`` it passes our layers where Megatron rebuilds stock ones."""

    def build_model(
        self,
        pg_collection: ProcessGroupCollection,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> GPTModel:
        """One model chunk, as GPTModelBuilder.build_model."""
        model: Any = self._model_config
        config = model.transformer
        if not config.mtp_num_layers or not isinstance(model.transformer_layer_spec, partial):
            return super().build_model(pg_collection, pre_process, post_process, vp_stage)
        virtual_size = config.virtual_pipeline_model_parallel_size
        if pre_process is None:
            pre_process = is_vp_first_stage(vp_stage, virtual_size) and is_pp_first_stage(pg_collection.pp)
        if post_process is None:
            post_process = is_vp_last_stage(vp_stage, virtual_size) and is_pp_last_stage(pg_collection.pp)
        vocabulary = model.vocab_size
        if model.should_pad_vocab:
            vocabulary = calculate_padded_vocab_size(
                vocabulary, model.make_vocab_size_divisible_by, config.tensor_model_parallel_size
            )
        # GPTModel takes these under the names they have in the configuration.
        same = (
            *("fp16_lm_cross_entropy", "parallel_output", "share_embeddings_and_output_weights"),
            *("position_embedding_type", "rotary_percent", "rotary_base", "rope_scaling", "rope_scaling_factor"),
            *("seq_len_interpolation_factor", "scatter_embedding_sequence_parallel"),
        )
        return WeighedMTP(
            config=config,
            transformer_layer_spec=model.transformer_layer_spec(model, vp_stage=vp_stage),
            mtp_block_spec=scheme_mtp_spec(config, model.design, vp_stage=vp_stage, backend=model.backend),
            vocab_size=vocabulary,
            max_sequence_length=model.seq_length,
            pre_process=pre_process,
            post_process=post_process,
            pg_collection=pg_collection,
            vp_stage=vp_stage,
            **{name: getattr(model, name) for name in same},
        )


def _layer_spec(
    model_config: GPTModelConfig, vp_stage: int | None = None, *, design: BlockDesign, backend: str | None
) -> TransformerBlockSubmodules:
    """The callable that Megatron's builder asks for the layers of one chunk."""
    return scheme_block_spec(model_config.transformer, design, vp_stage=vp_stage, backend=backend)


def attach_design(
    config: GPTModelConfig, design: BlockDesign, backend: str | None = None, own_layers: bool = False
) -> None:
    """Put a design and the depth check on ``config`` in place.

    The design is applied to Megatron's spec on the backend that ``--transformer-impl`` names; what it cannot carry is
    refused with a UserError. Stock layers are left to Megatron there, and on every backend but the torch one, unless
    ``own_layers`` asks for those of our spec.
    """
    transformer = config.transformer
    if design.common.geglu:
        gate_with_gelu(transformer)
    if design.scheme.configure is not None:
        design.scheme.configure(transformer, design.options)
    apply_init_policy(transformer, design.init_policy)
    if design.is_stock and transformer.transformer_impl not in ("local", "transformer_engine"):
        ours = False
    else:
        chosen = get_backend(transformer, backend)
        if not design.is_stock:
            if config.transformer_layer_spec is not None:
                raise UserError("--spec and --norm-scheme both name the layers; give one of them")
            refuse_unsupported(transformer, design, chosen)  # now, not when the model is built
            ours = True
        else:
            ours = own_layers or chosen.transformer_impl == "local"
            ours = ours and config.transformer_layer_spec is None and not unsupported_features(transformer, chosen)
    if design.scheme.attach is not None:
        transformer.has_cond_embedder = True  # Megatron then sums the gradients of copies over stages
        config.pre_wrap_hooks.append(design.attach)
    if design.scheme.groups is not None:
        config.pre_wrap_hooks.append(mark_outside)
    if design.streams > 1:
        _fit_transfers_to_streams(transformer)
    if ours:
        config.transformer_layer_spec = partial(_layer_spec, design=design, backend=backend)
    config.post_wrap_hooks.append(partial(refuse_wrong_depth, factor=design.factor))


def _fit_transfers_to_streams(transformer: TransformerConfig) -> None:
    """Have pipeline stages send the shape with each tensor: Megatron expects one stream, [s, b, h], from its own sizes."""
    if transformer.pipeline_model_parallel_size == 1:
        return
    if transformer.cuda_graph_impl == "full_iteration":
        raise UserError(
            "--cuda-graph-impl full_iteration does not support several residual streams over pipeline stages, whose shapes "
            "the host reads; give --cuda-graph-impl none"
        )
    transformer.variable_seq_lengths = True


def _to_device(model: list[Any]) -> list[Any]:
    """Weights drawn on the CPU (``--use-cpu-initialization``) go to the GPU: Megatron-Core 0.19.2 leaves them there."""
    return [chunk.cuda(torch.cuda.current_device()) for chunk in model]


def _fit_pipelines_to_graphs(transformer: TransformerConfig) -> None:
    """Set what captured pipeline stages need: Megatron-Core 0.19.2 keeps the settings of eager runs."""
    if transformer.cuda_graph_impl == "full_iteration":
        transformer.batch_p2p_sync = False  # waits for the device after each message, which a capture cannot


def model_config_from_args(args: MegatronArgs, own_layers: bool = False) -> tuple[SchemeModelConfig, str]:
    """Megatron's model configuration with our design on it, and the log line about initialisation.

    own_layers: see ``attach_design``.
    """
    design = design_from_args(args)
    stock: Any = gpt_config_from_args(args)
    held = {one.name: getattr(stock, one.name) for one in fields(stock) if one.init}
    backend = None if args.backend == "auto" else args.backend
    config = SchemeModelConfig(**held, design=design, backend=backend)
    if args.use_rope_scaling:  # Megatron 0.19.2 reads this flag and forgets it: every model was scaled by 8
        config.rope_scaling_factor = args.rope_scaling_factor
    _fit_pipelines_to_graphs(config.transformer)
    attach_design(config, design, backend, own_layers)
    if args.use_cpu_initialization and cpu.has_cuda() and not args.use_torch_fsdp2:
        config.pre_wrap_hooks.append(_to_device)
    if args.compile_layers:
        config.pre_wrap_hooks.append(compile_layers)
    elif not cpu.has_cuda():
        config.pre_wrap_hooks.append(use_plain_forward)
    return config, resolve_init_policy(args.norm_scheme, args.init_policy)[1]
