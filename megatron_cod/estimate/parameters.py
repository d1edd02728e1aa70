"""How many parameters a rank of a GPT model holds, from the arguments alone: no model, no process group.

One ``Count`` a module. It holds the numbers of the whole model, so that the same object answers for a rank and in total.
"""

from dataclasses import dataclass

from megatron_cod.args import MegatronArgs
from megatron_cod.common.lists import flags_set
from megatron_cod.estimate.shape import head_dim, query_groups
from megatron_cod.pipeline import StagePlan
from megatron_cod.schemes.design import design_from_args
from megatron_cod.schemes.table import get_scheme


@dataclass(frozen=True)
class Count:
    """Parameters of a part of the model, divided by how ranks share them."""

    split: int = 0
    """Divided over tensor-parallel ranks."""
    whole: int = 0
    """The same on every tensor-parallel rank."""
    experts: int = 0
    """Of all experts: divided over expert-parallel and expert-tensor-parallel ranks."""
    experts_whole: int = 0
    """Of all experts: divided over expert-parallel ranks only."""

    def __add__(self, other: "Count") -> "Count":
        return Count(
            self.split + other.split,
            self.whole + other.whole,
            self.experts + other.experts,
            self.experts_whole + other.experts_whole,
        )

    def times(self, number: int) -> "Count":
        """``number`` parts like this one."""
        return Count(self.split * number, self.whole * number, self.experts * number, self.experts_whole * number)

    @property
    def total(self) -> int:
        return self.split + self.whole + self.experts + self.experts_whole

    def dense_on_rank(self, args: MegatronArgs) -> int:
        """What one rank holds outside the experts."""
        return self.split // args.tensor_model_parallel_size + self.whole

    def experts_on_rank(self, args: MegatronArgs) -> int:
        """What one rank holds of the experts."""
        ep, etp = args.expert_model_parallel_size, args.expert_tensor_parallel_size or args.tensor_model_parallel_size
        return self.experts // (ep * etp) + self.experts_whole // ep


def uncounted_features(args: MegatronArgs) -> list[str]:
    """Flags whose parameters this file cannot count."""
    features = {
        "--multi-latent-attention": args.multi_latent_attention,
        "--experimental-attention-variant": args.experimental_attention_variant is not None,
        "--heterogeneous-layers-config-path": args.heterogeneous_layers_config_path is not None,
        "--hybrid-layer-pattern": getattr(args, "hybrid_layer_pattern", None) is not None,
        "--moe-latent-size": args.moe_latent_size is not None,
        "--softmax-type learnable": args.softmax_type == "learnable",
        "--mtp-use-repeated-layer": bool(args.mtp_num_layers) and args.mtp_use_repeated_layer,
        "--spec": args.spec is not None,
    }
    return flags_set(features)


def moe_pattern(args: MegatronArgs) -> list[bool]:
    """Per decoder layer, whether it is a mixture of experts."""
    if args.num_experts is None:
        return [False] * args.num_layers
    frequency = args.moe_layer_freq
    if isinstance(frequency, int):
        return [index % frequency == 0 for index in range(args.num_layers)]
    return [bool(mark) for mark in frequency]


def _norm(args: MegatronArgs, width: int) -> int:
    return width * (1 if args.normalization == "RMSNorm" else 2)


def attention_count(args: MegatronArgs) -> Count:
    """Self-attention without its input norm."""
    hidden, dim = args.hidden_size, head_dim(args)
    queries, keys = args.num_attention_heads * dim, query_groups(args) * dim
    rows = queries * (2 if getattr(args, "attention_output_gate", False) else 1) + 2 * keys
    split, whole = hidden * rows + queries * hidden, 0
    if args.add_bias_linear or args.add_qkv_bias:
        split += rows
    if args.add_bias_linear:
        whole += hidden
    if args.qk_layernorm and not getattr(args, "qk_l2_norm", False):
        whole += 2 * _norm(args, dim)
    return Count(split, whole)


def _mlp(args: MegatronArgs, ffn: int) -> Count:
    up = ffn * (2 if args.swiglu else 1)
    bias = args.add_bias_linear
    return Count(split=args.hidden_size * (up + ffn) + (up if bias else 0), whole=args.hidden_size if bias else 0)


def mlp_count(args: MegatronArgs, mixture: bool) -> Count:
    """The MLP of a layer without its norm: dense, or router, experts and shared expert."""
    if not mixture:
        return _mlp(args, args.ffn_hidden_size)
    expert = _mlp(args, args.moe_ffn_hidden_size or args.ffn_hidden_size)
    router = args.num_experts * (args.hidden_size + (1 if args.add_bias_linear else 0))
    count = Count(whole=router, experts=expert.split * args.num_experts, experts_whole=expert.whole * args.num_experts)
    if args.moe_shared_expert_intermediate_size:
        gate = args.hidden_size if getattr(args, "moe_shared_expert_gate", False) else 0
        count += _mlp(args, args.moe_shared_expert_intermediate_size) + Count(whole=gate)
    return count


def layer_count(args: MegatronArgs, mixture: bool) -> Count:
    """One transformer layer."""
    norm = _norm(args, args.hidden_size)
    design = design_from_args(args)
    added = design.scheme.layer_parameters(args.hidden_size, norm, design.options)
    return attention_count(args) + mlp_count(args, mixture) + Count(whole=2 * norm + added)


def final_norm_count(args: MegatronArgs) -> Count:
    """The norm behind the last block, under the schemes that have one."""
    design = design_from_args(args)
    norm = _norm(args, args.hidden_size) if design.scheme.final_norm else 0
    return Count(whole=norm + design.scheme.final_parameters(args.hidden_size, design.options))


def embedding_count(args: MegatronArgs) -> Count:
    """Word embeddings, and position embeddings where they are learned."""
    positions = 0
    if args.position_embedding_type == "learned_absolute":
        positions = args.max_position_embeddings * args.hidden_size
    return Count(split=args.padded_vocab_size * args.hidden_size, whole=positions)


def mtp_count(args: MegatronArgs) -> Count:
    """One multi-token-prediction layer: the model's last layer, three norms, a projection of 2h to h."""
    hidden = args.hidden_size
    inner = layer_count(args, moe_pattern(args)[-1])
    return inner + Count(split=2 * hidden * hidden, whole=3 * _norm(args, hidden))


def shared_count(args: MegatronArgs) -> Count:
    """What all layers share: a copy in the first chunk of every stage."""
    return Count(whole=get_scheme(args.norm_scheme).stage_parameters(args.hidden_size))


def chunk_count(args: MegatronArgs, chunk: StagePlan) -> Count:
    """One model chunk as it is built, its copies of the embedding among it."""
    pattern = moe_pattern(args)
    count = Count()
    for number in chunk.layers:
        count += layer_count(args, pattern[number - 1])
    if not chunk.virtual_stage:
        count += shared_count(args)
    count += mtp_count(args).times(len(chunk.mtp))
    if chunk.embedding or chunk.mtp:
        count += embedding_count(args)
    if args.num_layers in chunk.layers if args.mtp_num_layers else chunk.loss:
        count += final_norm_count(args)
    if chunk.loss and (args.untie_embeddings_and_output_weights or not chunk.embedding):
        count += Count(split=args.padded_vocab_size * args.hidden_size)
    return count


def model_count(args: MegatronArgs) -> Count:
    """The model, each weight once however many ranks hold a copy."""
    count = embedding_count(args) + final_norm_count(args) + shared_count(args)
    for mixture in moe_pattern(args):
        count += layer_count(args, mixture)
    count += mtp_count(args).times(args.mtp_num_layers or 0)
    if args.untie_embeddings_and_output_weights:
        count += Count(split=args.padded_vocab_size * args.hidden_size)
    return count
