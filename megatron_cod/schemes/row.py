"""The row of a norm scheme: everything that the rest of the project asks about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from megatron_cod.schemes.options import NoOptions
from megatron_cod.schemes.overlay import Bind, NormBuilder, Overlay
from megatron_cod.schemes.parameter_groups import GroupRules


class Site(Enum):
    """A place in a block where a scheme can act on stock weights."""

    ATTENTION_NORM = "attention_norm"
    MLP_NORM = "mlp_norm"
    ATTENTION_OUTPUT = "attention_output"
    MLP_OUTPUT = "mlp_output"
    ROUTER = "router"
    ATTENTION_BRANCH_NORM = "attention_branch_norm"
    MLP_BRANCH_NORM = "mlp_branch_norm"


NORM_SITES = (Site.ATTENTION_NORM, Site.MLP_NORM)
OUTPUT_SITES = (Site.ATTENTION_OUTPUT, Site.MLP_OUTPUT)

Factor = Callable[[int, Any, Any], float | None]
"""(l, config, options) -> what block l multiplies; l counts from 1 over the whole model. config: anything with
``num_layers`` (a TransformerConfig, or parsed arguments)."""


@dataclass(frozen=True)
class Foldable:
    """The scheme computes what a stock model computes with other weights: these.

    The stock model has Pre-LN blocks, or with ``branch_norms`` those with a norm behind each branch, too.

    A block's factor folds into the gammas of its norms (s * N(x) is a norm with gamma' = s * gamma) or into the rows of
    its output projections, as given by ``sites``.
    """

    sites: Callable[[Any], tuple[Site, ...]] = lambda _options: ()
    """Options -> where the row's ``factor`` acts."""
    divided: Callable[[Any], tuple[Site, ...]] = lambda _options: ()
    """Options -> where it is taken off again: a stock model's weights are these over the factor."""
    learned: Mapping[Site, str] = field(default_factory=dict)
    """Parameters, [h] or [1], that multiply the output of a branch: output site -> their name in the layer
    (``self_attn_bda.scale``)."""
    shared: tuple[str, ...] = ()
    """Parameters of the decoder that all layers share (``shared_gains.mlp_in.gamma``)."""
    gain: Callable[[Mapping[str, Any], Site, int, Any], Any] | None = None
    """(the shared ones by name, site, l, options) -> the gain [h] in layer l: the weight of a norm that has none of its
    own, or what multiplies a branch's output."""
    branch_norms: Callable[[Any], bool] = lambda _options: False
    """Options -> whether each branch ends with a norm: ``self_attn_bda.norm`` and ``mlp_bda.norm``, unless ``gain`` makes
    their weights."""
    imported: bool = True
    """Whether an existing stock model can be treated as one of this scheme."""


@dataclass(frozen=True)
class NotFoldable:
    """No stock model computes what the scheme computes."""

    reason: str


Stock = Foldable | NotFoldable


def records_nothing(_config: Any, _options: Any) -> dict[str, Any]:
    """For ``Scheme.recorded``: the options act on the start values only."""
    return {}


def _records_options(_config: Any, options: Any) -> dict[str, Any]:
    return dict(vars(options))


def _accepts(_config: Any, _backend: str, _options: Any) -> list[str]:
    return []


@dataclass(frozen=True)
class Scheme:
    """How a scheme differs from the stock Pre-LN spec it is applied to. Register it with ``table.register_scheme``."""

    name: str
    block: str
    """What a branch F of block l does to the stream x, for people: ``x + F(N(x) / sqrt(l))``."""
    reference: str
    default_init: str
    """Key of ``init_policy.INIT_POLICIES`` used when the user names none."""
    options: type = NoOptions
    """Dataclass of the scheme's own options, made of ``options.option`` fields."""
    overlay: Overlay | None = None
    """What it changes of a layer's spec; None leaves Megatron's."""
    factor: Factor | None = None
    """The factor of the depth-scaled modules that the overlay put in (``depth.DepthScaled``). It is set in each built
    layer, checked over all pipeline stages before the first step, and folded by an export."""
    carriers: Callable[[Any], int] = lambda _options: 2
    """Options -> how many modules of a block carry the factor, where there is one."""
    bind: Bind | None = None
    """What else it sets in a built layer, once its global number is known."""
    layer: Mapping[type, type] = field(default_factory=dict)
    """Layer classes of its own: Megatron's class -> a subclass of it that also inherits ``design.Numbered``."""
    streams: Callable[[Any], int] = lambda _options: 1
    """Options -> n, how many residual streams a model has: [s, n b, h] between its blocks. The first block makes n of one;
    ``final``, or the last block, makes one of n. Transfers between pipeline stages and the rehearsal read it."""
    attach: Callable[[Any, list[tuple[Any, int]], Any], None] | None = None
    """(decoder of a pipeline stage's first chunk, the layers of all of its chunks with their global numbers, options) ->
    gives the stage its copy of the parameters that all layers share, before the chunks are wrapped."""
    configure: Callable[[Any, Any], None] | None = None
    """(TransformerConfig, options) -> sets fields of it before the model is built: initialisers, Megatron's multipliers."""
    groups: Callable[[Any, Any], GroupRules] | None = None
    """(anything with ``num_layers`` and ``hidden_size``, options) -> rates, decay and eps of kinds of parameters."""
    one_graph: bool = True
    """Whether torch.compile makes the same graph of every layer: what differs between them are tensors, not numbers."""
    own_gammas: bool = True
    """Whether the input norms of a layer have weights of their own."""
    stage_parameters: Callable[[int], int] = lambda _hidden: 0
    """Hidden size -> parameters that it adds to the first chunk of each pipeline stage."""
    check: Callable[[Any, int | None], None] | None = None
    """(options, number of layers or None) -> raises UserError for a value that an option cannot have."""
    recorded: Callable[[Any, Any], dict[str, Any]] = _records_options
    """(config, options) -> what a checkpoint records beside the scheme's name: all that its function depends on. One
    that records other values is refused. By default every option."""
    options_from_record: Callable[[Mapping[str, Any]], Any] | None = None
    """The inverse of ``recorded``, for imports; None: each option is recorded under its own name, or at its default."""
    stock: Stock = field(default_factory=Foldable)
    """Whether and how its weights become those of a stock Pre-LN model."""
    final: Callable[[NormBuilder, Any], NormBuilder] | None = None
    """(builder of a norm, options) -> builder of the final norm; None: the norm itself."""
    final_norm: bool = True
    """Whether the model's final norm stays: without it the last block's own norm is the last one."""
    layer_parameters: Callable[[int, int, Any], int] = lambda _hidden, _norm, _options: 0
    """(hidden size, parameters of a norm, options) -> parameters it adds to each layer."""
    final_parameters: Callable[[int, Any], int] = lambda _hidden, _options: 0
    """(hidden size, options) -> parameters it adds to the final norm."""
    unsupported: Callable[[Any, str, Any], list[str]] = _accepts
    """(TransformerConfig, backend's name, options) -> what it does not support of them, as ``--flag (reason)``."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Init policy -> a remark for the log where that policy is used with this scheme."""
