"""Architectures that users bring and that Megatron-Core 0.19.2 does not compute: the term that it lacks."""

from collections.abc import Mapping

_OVER_HEADS = (
    "its norms of queries and keys (q_norm, k_norm) go over the channels of all heads together, those of "
    "Megatron-Core 0.19.2 over one head each"
)
_ONLY_BEHIND = "its blocks have norms behind the branches and none before them (x + N(F(x)))"

UNSUPPORTED: Mapping[str, str] = {
    "olmo2": f"{_OVER_HEADS}; {_ONLY_BEHIND}",
    "olmo3": f"{_OVER_HEADS}; {_ONLY_BEHIND}",
    "flex_olmo": f"{_OVER_HEADS}; {_ONLY_BEHIND}",
    "olmoe": _OVER_HEADS,
}
"""``model_type`` -> why it is refused."""
