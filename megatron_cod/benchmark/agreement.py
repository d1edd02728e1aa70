"""What must agree before a time means anything: logits, losses of training steps, and losses of an evaluation."""

from collections.abc import Sequence
from types import SimpleNamespace

from torch import Tensor

from megatron_cod.benchmark.timing import Lap
from megatron_cod.errors import UserError
from megatron_cod.schemes.row import Scheme

TOLERANCE = 1e-4


def fold_depth(scheme: Scheme, state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The weights of a stock Llama that computes what the scheme does by default: gammas times its depth factor."""
    folded, options, config = dict(state), scheme.options(), SimpleNamespace(num_layers=layers)
    for layer in range(layers):
        factor = scheme.factor(layer + 1, config, options) if scheme.factor else None
        for norm in ("input_layernorm", "post_attention_layernorm"):
            name = f"model.layers.{layer}.{norm}.weight"
            folded[name] = state[name] if factor is None else state[name] * factor
    return folded


def check_logits(name: str, ours: Tensor, theirs: Tensor) -> str:
    """One line on how far the logits are apart; UserError beyond the tolerance: the timing would mean nothing."""
    difference = (ours - theirs).abs().max().item()
    if not difference <= TOLERANCE:  # also when it is nan
        raise UserError(
            f"{name} does not compute what transformers does: logits differ by {difference:.2e}, allowed {TOLERANCE}"
        )
    return f"logits of {name} and transformers agree within {difference:.1e}"


def check_losses(name: str, ours: Sequence[Lap], theirs: Sequence[Lap]) -> str:
    """The same for the losses of training steps: they agree only if gradients and optimizers do."""
    difference = max(abs(mine.loss - other.loss) for mine, other in zip(ours, theirs, strict=True))
    if not difference <= TOLERANCE:
        raise UserError(
            f"{name} does not train as transformers does: losses differ by {difference:.2e} after {len(ours)} steps, "
            f"allowed {TOLERANCE}"
        )
    return f"losses of {name} and transformers agree within {difference:.1e} over {len(ours)} training steps"


def check_evaluation(name: str, ours: float, theirs: float) -> str:
    """The same for the mean loss of an evaluation, nats a token."""
    if not abs(ours - theirs) <= TOLERANCE:
        raise UserError(
            f"{name} evaluates to {ours:.6f} and transformers to {theirs:.6f} nats a token, allowed {TOLERANCE}"
        )
    return f"mean losses of {name} and transformers agree within {abs(ours - theirs):.1e} nats a token"
