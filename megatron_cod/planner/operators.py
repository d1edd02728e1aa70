"""Seconds of the operators that a layer consists of, from shapes and a machine: a roofline whose two sides add up.

A product of m x k and k x n takes 2 m n k FLOPs at the machine's rate and, beside that, the time in which its operands and
its result pass the memory once. So small products, thin ones and those of small micro-batches are slow, without a table of
efficiencies by shape.
"""

from dataclasses import dataclass, replace
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.estimate.memory import gradient_bytes
from megatron_cod.estimate.shape import element_size
from megatron_cod.planner.machine import Machine

FLASH_BACKWARD = 2.5
"""FLOPs of flash attention's backward over its forward: five products against two (Dao, arXiv 2307.08691, 3.2)."""

FP8_READS = {"tensorwise": 2}
"""How often a cast reads its input, by ``--fp8-recipe``: current scaling of whole tensors finds their maximum first."""


def precision(args: MegatronArgs) -> str:
    """The key of ``peak_tflops`` for the products of a launch."""
    if getattr(args, "fp8", None):
        return "fp8"
    return "bf16" if element_size(args.params_dtype) == 2 else "fp32"


@dataclass(frozen=True)
class Product:
    """A weight of n x k applied to m rows, on each of ``count`` parts (experts)."""

    m: float
    n: float
    k: float
    count: float = 1.0

    @property
    def flops(self) -> float:
        return 2 * self.m * self.n * self.k * self.count

    @property
    def weight(self) -> float:
        return self.n * self.k * self.count

    @property
    def activations(self) -> float:
        """Elements of its input and output."""
        return self.m * (self.n + self.k) * self.count


@dataclass(frozen=True)
class Kernels:
    """A machine as the kernels of one launch see it."""

    machine: Machine
    precision: str
    element: int
    gradient: int
    """Bytes of a main gradient, to which each micro-batch adds."""
    cast: int = 0
    """Bytes an element of what is cast to FP8 for a product: read, and written twice, as its gradient's product reads it
    transposed."""

    def moved(self, size: float) -> float:
        """Seconds to move so many bytes."""
        return size / self.machine.memory_rate

    @property
    def operand(self) -> int:
        """Bytes of an element that a product reads."""
        return 1 if self.cast else self.element

    def forward(self, product: Product) -> float:
        """Seconds of the product itself; those of its input's gradient are the same.

        FP8: its input is cast before, in the backward the gradient of its output: half of both for each.
        """
        # Half of the activations are read as operands, the other half written.
        activations = product.activations * (self.operand + self.element + self.cast) / 2
        return product.flops / self.machine.product_rate(self.precision) + self.moved(
            activations + product.weight * self.operand
        )

    def weight_gradient(self, product: Product) -> float:
        """Seconds of the weight's gradient, added to the main gradient."""
        moved = self.moved(product.activations * self.operand + 2 * product.weight * self.gradient)
        return product.flops / self.machine.product_rate(self.precision) + moved

    def in_bf16(self) -> "Kernels":
        """The kernels of what FP8 does not reach: the output layer, the router."""
        return replace(self, precision="bf16", cast=0) if self.precision == "fp8" else self

    def attention(self, flops: float) -> float:
        """Seconds of flash attention, which moves next to nothing."""
        return flops / self.machine.attention_rate(self.precision)


def kernels(args: MegatronArgs, machine: Machine) -> Kernels:
    """args: Megatron's, after validation."""
    name, element = precision(args), element_size(args.params_dtype)
    cast = element * FP8_READS.get(str(getattr(args, "fp8_recipe", None)), 1) + 2 if name == "fp8" else 0
    return Kernels(machine, name, element, gradient_bytes(args), cast)


def is_unfused(args: MegatronArgs) -> bool:
    """Whether attention writes its scores to memory."""
    backend: Any = args.attention_backend
    return str(getattr(backend, "name", backend)) == "unfused"
