"""SCHEMES: one row per norm scheme. Adding a scheme is one file beside ``lns.py`` and one row here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from megatron.core.transformer.transformer_layer import MoETransformerLayer, TransformerLayer

from megatron_cod.schemes.depth import DEPTH_EXPONENT
from megatron_cod.schemes.lns import LNSMoETransformerLayer, LNSTransformerLayer


@dataclass(frozen=True)
class Scheme:
    """How a scheme differs from the stock Pre-LN spec it is laid over."""

    name: str
    reference: str
    default_init: str
    """Key of ``init_policy.INIT_POLICIES`` used when the user names none."""
    scales_input_norms: bool = False
    """Whether the attention-input and MLP-input norms carry the depth factor."""
    layer_classes: Mapping[type, type] = field(default_factory=dict)
    """Megatron's layer class -> the class that takes its place; a class missing here is refused."""

    @property
    def exponent(self) -> float:
        """The power of l that multiplies the input norms of block l: 0 for stock norms."""
        return DEPTH_EXPONENT if self.scales_input_norms else 0.0


_ROWS = (
    Scheme(
        name="pre_ln",
        reference="Baevski & Auli, arXiv 1809.10853; stock Megatron",
        default_init="scaled",
        layer_classes={TransformerLayer: TransformerLayer, MoETransformerLayer: MoETransformerLayer},
    ),
    Scheme(
        name="lns",
        reference="Sun et al., arXiv 2502.05795",
        default_init="normal",
        scales_input_norms=True,
        layer_classes={
            TransformerLayer: LNSTransformerLayer,
            MoETransformerLayer: LNSMoETransformerLayer,
        },
    ),
)

SCHEMES: dict[str, Scheme] = {row.name: row for row in _ROWS}


def get_scheme(name: str) -> Scheme:
    """The row called ``name``; ValueError names the nearest scheme otherwise."""
    if name in SCHEMES:
        return SCHEMES[name]
    near = get_close_matches(name, SCHEMES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"no norm scheme {name!r}, there are {', '.join(SCHEMES)}{hint}")
