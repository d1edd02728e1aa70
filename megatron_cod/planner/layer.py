"""The cost of one transformer layer for one micro-batch on one rank.

t: tokens of this rank's part of the sequence, e: bytes of an element, h: hidden size. Each part is one function, so that
recomputation can name it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_cod.args import MegatronArgs
from megatron_cod.estimate.activations import expert_ffn, routed_rows
from megatron_cod.estimate.shape import head_dim, query_groups
from megatron_cod.planner.collectives import all_reduce, all_to_all, gather
from megatron_cod.planner.machine import Machine
from megatron_cod.planner.operators import FLASH_BACKWARD, Kernels, Product, is_unfused, kernels
from megatron_cod.planner.places import Places, expert_tensor_size, places
from megatron_cod.planner.split import Cost, Split, recomputed
from megatron_cod.schemes.design import design_from_args


@dataclass(frozen=True)
class Software:
    """What the training code does, beyond its flags."""

    overlaps_backward: bool = True
    """Tensor-parallel communication of a backward runs beside the gradient of the weights (Megatron-LM since 2022)."""
    scatters_transfers: bool = False
    """Without sequence parallelism a stage sends each tensor-parallel rank's part only, and the next one gathers them
    (Megatron-LM until 2022)."""


TODAY = Software()


@dataclass(frozen=True)
class Setting:
    """All that the parts of a layer need."""

    args: MegatronArgs
    machine: Machine
    kernels: Kernels
    places: Places
    software: Software
    tokens: float

    @property
    def stream(self) -> float:
        """Bytes of t x h."""
        return self.tokens * self.args.hidden_size * self.kernels.element

    @property
    def own_stream(self) -> float:
        """The same of this rank, where sequence parallelism cuts."""
        return self.stream / (self.args.tensor_model_parallel_size if self.args.sequence_parallel else 1)

    @property
    def up(self) -> int:
        """Widths that go into the activation function."""
        return 2 if self.args.swiglu else 1


def setting(args: MegatronArgs, machine: Machine, software: Software) -> Setting:
    """args: Megatron's, after validation."""
    tokens = args.seq_length * args.micro_batch_size / args.context_parallel_size
    return Setting(args, machine, kernels(args, machine), places(args, machine), software, tokens)


def linear_pair(to: Setting, first: Product, second: Product) -> Cost:
    """A product split by columns and one split by rows, as tensor parallelism makes them, with their communication.

    Forward: gather the input, reduce-scatter the output; without sequence parallelism one all-reduce. Backward the same,
    and the input is gathered again for the weight's gradient. ``--tp-comm-overlap`` cuts them into as many parts as there
    are ranks, all but the first of which run beside the product.
    """
    run, group = to.kernels, to.places.tensor
    ahead, behind = run.forward(first), run.forward(second)
    weights = run.weight_gradient(first) + run.weight_gradient(second)
    forward, backward = Split(products=ahead + behind), Split(products=ahead + behind + weights)
    if group.size == 1:
        return Cost(forward, backward)
    once = gather(to.machine, group, to.stream)
    parts = group.size if to.args.tp_comm_overlap else 1

    def exposed(beside: float, cut: int) -> float:
        return max(once / cut, once - beside) if cut > 1 else once

    beside_weights = run.weight_gradient(first) if to.software.overlaps_backward else 0.0
    if to.args.sequence_parallel:
        there = exposed(ahead, parts) + exposed(behind, parts)
        again = max(0.0, once - (ahead if to.software.overlaps_backward else 0.0))
        back = exposed(behind, parts) + max(0.0, once - beside_weights) + again
        hidden = 5 * once - there - back
    else:
        whole = all_reduce(to.machine, group, to.stream)
        there, back = whole, max(0.0, whole - beside_weights)
        hidden = 2 * whole - there - back
    return Cost(forward + Split(tensor=there), backward + Split(tensor=back), hidden)


def attention_products(args: MegatronArgs, tokens: float) -> tuple[Product, Product]:
    """Those of queries, keys and values, and of the output."""
    tp, dim = args.tensor_model_parallel_size, head_dim(args)
    queries, keys = args.num_attention_heads * dim / tp, query_groups(args) * dim / tp
    gate = 2 if getattr(args, "attention_output_gate", False) else 1
    first = Product(tokens, gate * queries + 2 * keys, args.hidden_size)
    return first, Product(tokens, args.hidden_size, queries)


def attention_linears(to: Setting) -> Cost:
    """The two products of attention, and rotary embeddings."""
    cost = linear_pair(to, *attention_products(to.args, to.tokens))
    if to.args.position_embedding_type not in ("rope", "yarn", "mrope"):
        return cost
    tp, dim = to.args.tensor_model_parallel_size, head_dim(to.args)
    channels = (to.args.num_attention_heads + query_groups(to.args)) * dim / tp
    turned = Split(memory=to.kernels.moved(2 * to.tokens * channels * to.kernels.element))
    return cost + Cost(turned, turned)


def core_attention(to: Setting) -> Cost:
    """Scores, softmax and their product with the values; keys and values of other context ranks arrive meanwhile."""
    args = to.args
    heads = args.num_attention_heads / args.tensor_model_parallel_size
    if is_unfused(args):
        return _unfused(to, heads)
    flops = 4 * to.tokens * args.seq_length * heads * head_dim(args) / 2  # causal: half of the scores
    once = to.kernels.attention(flops)
    cost = Cost(Split(attention=once), Split(attention=FLASH_BACKWARD * once))
    return cost + _ring(to, once) if args.context_parallel_size > 1 else cost


def _ring(to: Setting, computing: float) -> Cost:
    """Context parallelism: keys and values pass all other ranks, and back their gradients beside them."""
    args, machine = to.args, to.machine
    keys = max(query_groups(args) / args.tensor_model_parallel_size, 1) * head_dim(args)
    size, hops = 2 * to.tokens * keys * to.kernels.element, args.context_parallel_size - 1
    crosses = to.places.context.nodes > 1
    rate = machine.network_rate if crosses else machine.node_rate
    step = (machine.network_latency_us if crosses else machine.node_latency_us) * 1e-6
    there, back = hops * (size / rate + step), hops * (2 * size / rate + step)
    share = hops / args.context_parallel_size  # the first part is its own
    late = max(0.0, there - share * computing), max(0.0, back - share * FLASH_BACKWARD * computing)
    return Cost(Split(context=late[0]), Split(context=late[1]), there + back - sum(late))


def _unfused(to: Setting, heads: float) -> Cost:
    """Two batches of products over all scores, and passes over them: softmax and dropout with their gradients."""
    args, run = to.args, to.kernels
    batch = args.micro_batch_size * heads
    rows, dim = args.seq_length / args.context_parallel_size, head_dim(args)
    one = run.forward(Product(rows, args.seq_length, dim, batch))
    scores = batch * rows * args.seq_length
    dropout = 2 * run.element + 1 if args.attention_dropout else 0
    there = run.moved(scores * (2 * run.element + dropout))
    back = run.moved(scores * (3 * run.element + dropout))
    return Cost(Split(attention=2 * one + there), Split(attention=4 * one + back))


def norms(to: Setting) -> Cost:
    """The two input norms: read and written, and read twice and written in the backward."""
    size = 2 * to.own_stream
    return Cost(Split(memory=to.kernels.moved(2 * size)), Split(memory=to.kernels.moved(3 * size)))


def residuals(to: Setting) -> Cost:
    """Two branches added to the stream, or to each of a scheme's n streams, with dropout's mask where there is one."""
    streams = design_from_args(to.args).streams
    mask = to.own_stream / to.kernels.element if to.args.hidden_dropout else 0.0
    there = 2 * ((1 + 2 * streams) * to.own_stream + mask)
    back = 2 * ((2 if mask else 0) * to.own_stream + mask + 2 * (streams - 1) * to.own_stream)
    return Cost(Split(memory=to.kernels.moved(there)), Split(memory=to.kernels.moved(back)))


def _activation(to: Setting, rows: float, width: float) -> Cost:
    """The activation function over ``width`` channels: its input read, its output written; the gradient of both."""
    element = to.kernels.element
    there, back = rows * width * (to.up + 1) * element, rows * width * (2 * to.up + 1) * element
    return Cost(Split(memory=to.kernels.moved(there)), Split(memory=to.kernels.moved(back)))


def _mlp(to: Setting, ffn: float) -> Cost:
    width, hidden = ffn / to.args.tensor_model_parallel_size, to.args.hidden_size
    pair = linear_pair(to, Product(to.tokens, to.up * width, hidden), Product(to.tokens, hidden, width))
    return pair + _activation(to, to.tokens, width)


def mlp(to: Setting) -> Cost:
    """A dense MLP."""
    return _mlp(to, to.args.ffn_hidden_size)


def experts(to: Setting) -> Cost:
    """Router, the way to the experts and back, their products, and a shared expert.

    Rows are permuted before and behind the exchange, each way.
    """
    args, run, machine = to.args, to.kernels, to.machine
    rows, width, hidden = routed_rows(args), expert_ffn(args), args.hidden_size
    local = args.num_experts / args.expert_model_parallel_size
    first = Product(rows / local, to.up * width, hidden, local)
    second = Product(rows / local, hidden, width, local)
    router = run.in_bf16().forward(Product(to.tokens / args.tensor_model_parallel_size, args.num_experts, hidden))
    moved = run.moved(4 * 2 * rows * hidden * run.element)
    once = run.forward(first) + run.forward(second)
    weights = run.weight_gradient(first) + run.weight_gradient(second)
    size = rows / expert_tensor_size(args) * hidden * run.element
    copies = args.moe_router_topk if args.moe_token_dispatcher_type == "flex" else 0
    there = 2 * all_to_all(machine, to.places.expert, size, copies)
    split = 2 * gather(machine, to.places.expert_tensor, rows * hidden * run.element)
    late = max(0.0, there - once) if args.overlap_moe_expert_parallel_comm else there
    forward = Split(products=once + router, memory=moved, expert=late, tensor=split)
    backward = Split(products=2 * router + once + weights, memory=moved, expert=late, tensor=split)
    cost = Cost(forward, backward, 2 * (there - late))
    shared = args.moe_shared_expert_intermediate_size
    return cost + (_mlp(to, shared) if shared else Cost(Split(), Split()))


def expert_activation(to: Setting) -> Cost:
    """The activation function of the experts."""
    return _activation(to, routed_rows(to.args), expert_ffn(to.args))


def layer_parts(to: Setting, mixture: bool) -> dict[str, Cost]:
    """The parts by the module that would recompute them; "residual" and "linears" have none."""
    parts = {
        "residual": residuals(to),
        "layernorm": norms(to),
        "linears": attention_linears(to),
        "core_attn": core_attention(to),
    }
    if mixture:
        return parts | {"moe": experts(to), "moe_act": expert_activation(to)}
    return parts | {"mlp": mlp(to)}


def _again(args: MegatronArgs, parts: dict[str, Cost], share: float) -> Split:
    """The forward passes that a backward makes again. share: of the layers, under full recomputation."""
    whole = sum((cost.forward for cost in parts.values()), Split())
    if args.recompute_granularity == "full":
        return recomputed(whole).times(share)
    if args.recompute_granularity != "selective":
        return Split()
    dropped: Sequence[str] = args.recompute_modules or ["core_attn"]
    modules = set(dropped) | ({"moe_act"} if "moe" in dropped else set())
    return recomputed(sum((cost.forward for name, cost in parts.items() if name in modules), Split()))


def layer_cost(to: Setting, mixture: bool, share: float = 1.0) -> Cost:
    """One layer. share: of the layers that are recomputed, under full recomputation by blocks."""
    parts = layer_parts(to, mixture)
    cost = sum(parts.values(), Cost(Split(), Split()))
    return Cost(cost.forward, cost.backward + _again(to.args, parts, share), cost.hidden)
