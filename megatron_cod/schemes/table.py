"""SCHEMES: one row per norm scheme. Adding one is a file beside ``lns.py`` and a row here (docs/schemes.md shows how)."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from megatron_cod.schemes.branch_scale import layerscale_overlay, skipinit_overlay
from megatron_cod.schemes.lns import bind_depth_factor, lns_carriers, lns_exponent, lns_overlay
from megatron_cod.schemes.options import WITH_EVERY_SCHEME, SchemeOptions
from megatron_cod.schemes.overlay import Bind, Overlay
from megatron_cod.schemes.post_norm import bind_deepnorm, bind_mix_ln, bind_post_ln, post_norm_overlay
from megatron_cod.schemes.sandwich import sandwich_overlay


@dataclass(frozen=True)
class Scheme:
    """How a scheme differs from the stock Pre-LN spec it is laid over."""

    name: str
    block: str
    """What a branch F of block l does to the stream x."""
    reference: str
    default_init: str
    """Key of ``init_policy.INIT_POLICIES`` used when the user names none."""
    overlay: Overlay | None = None
    """What it changes of a layer's spec; None leaves Megatron's."""
    bind: Bind | None = None
    """What it sets in a built layer, once its global number is known."""
    final_norm: bool = True
    """Whether the model's final norm stays: without it the last block's own norm is the last one."""
    options: tuple[str, ...] = ()
    """Fields of ``SchemeOptions`` of its own."""

    branch_parameters: Callable[[int, int], int] | None = None
    """Parameters it adds to each branch, from the hidden size and the parameters of a norm."""

    def carriers(self, options: SchemeOptions) -> int:
        """How many modules of a block carry a depth factor."""
        return lns_carriers(options) if self.bind is bind_depth_factor else 0

    def exponent(self, options: SchemeOptions) -> float:
        """The power of l that multiplies what block l normalises: 0 for stock norms."""
        return lns_exponent(options) if self.bind is bind_depth_factor else 0.0


_ROWS = (
    Scheme(
        name="pre_ln",
        block="x + F(N(x))",
        reference="Baevski & Auli, arXiv 1809.10853; stock Megatron",
        default_init="scaled",
    ),
    Scheme(
        name="lns",
        block="x + F(N(x) / sqrt(l))",
        reference="Sun et al., arXiv 2502.05795",
        default_init="normal",
        overlay=lns_overlay,
        bind=bind_depth_factor,
        options=("lns_placement", "lns_exponent"),
    ),
    Scheme(
        name="post_ln",
        block="N(x + F(x))",
        reference="Vaswani et al., arXiv 1706.03762",
        default_init="normal",
        overlay=post_norm_overlay,
        bind=bind_post_ln,
        final_norm=False,
    ),
    Scheme(
        name="mix_ln",
        block="the first K blocks post_ln, the others pre_ln",
        reference="Li et al., arXiv 2412.13795",
        default_init="normal",
        overlay=post_norm_overlay,
        bind=bind_mix_ln,
        options=("mix_ln_post_layers",),
    ),
    Scheme(
        name="deepnorm",
        block="N((2L)^(1/4) x + F(x))",
        reference="Wang et al., arXiv 2203.00555, decoder-only",
        default_init="deepnorm",
        overlay=post_norm_overlay,
        bind=bind_deepnorm,
        final_norm=False,
    ),
    Scheme(
        name="sandwich_ln",
        block="x + N'(F(N(x)))",
        reference="Ding et al., arXiv 2105.13290; Peri-LN: Kim et al., arXiv 2502.02732",
        default_init="normal",
        overlay=sandwich_overlay,
        branch_parameters=lambda _hidden, norm: norm,
    ),
    Scheme(
        name="layerscale",
        block="x + diag(a) F(N(x)), a learned",
        reference="Touvron et al., arXiv 2103.17239",
        default_init="normal",
        overlay=layerscale_overlay,
        branch_parameters=lambda hidden, _norm: hidden,
        options=("layerscale_init",),
    ),
    Scheme(
        name="skipinit",
        block="x + a F(N(x)), a learned, from 0",
        reference="De & Smith, arXiv 2002.10444",
        default_init="normal",
        overlay=skipinit_overlay,
        branch_parameters=lambda _hidden, _norm: 1,
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


def takers(option: str) -> list[str]:
    """The schemes that take an option of ``SchemeOptions``."""
    return [row.name for row in SCHEMES.values() if option in row.options or option in WITH_EVERY_SCHEME]
