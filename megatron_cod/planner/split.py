"""Where time goes: seconds by what a rank does in them."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Split:
    """Seconds of one rank, none counted twice. Communication here is exposed: nothing is computed meanwhile."""

    products: float = 0.0
    attention: float = 0.0
    memory: float = 0.0
    """Kernels that only move memory: norms, residuals, activation functions, rotary embeddings, permutations."""
    head: float = 0.0
    """Embedding, final norm, output layer and loss."""
    recomputation: float = 0.0
    tensor: float = 0.0
    context: float = 0.0
    expert: float = 0.0
    bubble: float = 0.0
    """Waiting for other pipeline stages."""
    pipeline: float = 0.0
    """More waiting, for activations and gradients to arrive from other stages."""
    data: float = 0.0
    """Gradients, and gathering updated weights."""
    optimizer: float = 0.0

    def __add__(self, other: "Split") -> "Split":
        return Split(*(getattr(self, name) + getattr(other, name) for name in NAMES))

    def times(self, number: float) -> "Split":
        """``number`` of these."""
        return Split(*(getattr(self, name) * number for name in NAMES))

    @property
    def total(self) -> float:
        return sum(getattr(self, name) for name in NAMES)

    @property
    def communication(self) -> float:
        """What is exposed of it."""
        return self.tensor + self.context + self.expert + self.pipeline + self.data


NAMES = tuple(field.name for field in fields(Split))


def recomputed(forward: Split) -> Split:
    """A forward pass that is made again in the backward: its communication stays what it is."""
    computing = forward.products + forward.attention + forward.memory + forward.head
    return Split(recomputation=computing, tensor=forward.tensor, context=forward.context, expert=forward.expert)


@dataclass(frozen=True)
class Cost:
    """Of one micro-batch through a part of the model."""

    forward: Split
    backward: Split
    hidden: float = 0.0
    """Communication of both passes that computing hides, in seconds."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.forward + other.forward, self.backward + other.backward, self.hidden + other.hidden)

    def times(self, number: float) -> "Cost":
        """``number`` such parts."""
        return Cost(self.forward.times(number), self.backward.times(number), self.hidden * number)


NOTHING = Cost(Split(), Split())
