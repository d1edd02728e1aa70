"""Seconds of the operators that a layer consists of, from shapes and a machine: a roofline whose two sides add up.

A product of m x k and k x n takes 2 m n k FLOPs at the machine's rate and, beside that, the time in which its operands and
its result pass the memory once. So small products, thin ones and those of small micro-batches are slow, without a table of
efficiencies by shape.
"""

from dataclasses import dataclass
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.estimate.memory import gradient_bytes
from megatron_cod.estimate.shape import element_size
from megatron_cod.planner.machine import Machine

FLASH_BACKWARD = 2.5
"""FLOPs of flash attention's backward over its forward: five products against two (Dao, arXiv 2307.08691, 3.2)."""


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

    def moved(self, size: float) -> float:
        """Seconds to move so many bytes."""
        return size / self.machine.memory_rate

    def forward(self, product: Product) -> float:
        """Seconds of the product itself; those of its input's gradient are the same."""
        moved = self.moved((product.activations + product.weight) * self.element)
        return product.flops / self.machine.product_rate(self.precision) + moved

    def weight_gradient(self, product: Product) -> float:
        """Seconds of the weight's gradient, added to the main gradient."""
        moved = self.moved(product.activations * self.element + 2 * product.weight * self.gradient)
        return product.flops / self.machine.product_rate(self.precision) + moved

    def attention(self, flops: float) -> float:
        """Seconds of flash attention, which moves next to nothing."""
        return flops / self.machine.attention_rate(self.precision)


def kernels(args: MegatronArgs, machine: Machine) -> Kernels:
    """args: Megatron's, after validation."""
    return Kernels(machine, precision(args), element_size(args.params_dtype), gradient_bytes(args))


def is_unfused(args: MegatronArgs) -> bool:
    """Whether attention writes its scores to memory."""
    backend: Any = args.attention_backend
    return str(getattr(backend, "name", backend)) == "unfused"
