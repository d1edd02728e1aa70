"""Machines: what a GPU and the links between GPUs can do, built in by name or from a YAML file.

Peaks and bandwidths are those of data sheets; ``Efficiency`` is the share of them that programs reach. docs/planner.md has
the source of each number.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from megatron_cod.errors import UserError


@dataclass(frozen=True)
class Efficiency:
    """Shares of a peak that programs reach, above 0 and at most 1."""

    products: float
    """Matrix products, of the GPU's peak."""
    attention: float
    """Flash attention, forward and backward together, of the GPU's peak."""
    memory: float
    """Kernels that only move memory."""
    node: float
    """Collectives within a node."""
    network: float
    """Collectives between nodes."""


@dataclass(frozen=True)
class Machine:
    """A cluster of equal nodes. Bandwidths are of one GPU in one direction, in GB/s (1e9 bytes)."""

    name: str
    peak_tflops: Mapping[str, float]
    """Dense products by precision: bf16 (fp16 has the same), fp8, fp32."""
    memory_gib: float
    memory_gbps: float
    gpus_per_node: int
    node_gbps: float
    network_gbps: float
    node_latency_us: float
    """Of one step of a ring within a node."""
    network_latency_us: float
    efficiency: Efficiency

    def product_rate(self, precision: str) -> float:
        """FLOP/s of matrix products. UserError where the machine has no peak for the precision."""
        return self.peak(precision) * self.efficiency.products

    def attention_rate(self, precision: str) -> float:
        """FLOP/s of flash attention, which has no FP8 here."""
        return self.peak("bf16" if precision == "fp8" else precision) * self.efficiency.attention

    def peak(self, precision: str) -> float:
        """FLOP/s of the data sheet."""
        if precision not in self.peak_tflops:
            known = ", ".join(sorted(self.peak_tflops))
            raise UserError(
                f"the machine {self.name} has no peak_tflops.{precision}, which this launch needs; it has {known}"
            )
        return self.peak_tflops[precision] * 1e12

    @property
    def memory_rate(self) -> float:
        """Bytes a second that a kernel moves."""
        return self.memory_gbps * 1e9 * self.efficiency.memory

    @property
    def node_rate(self) -> float:
        return self.node_gbps * 1e9 * self.efficiency.node

    @property
    def network_rate(self) -> float:
        return self.network_gbps * 1e9 * self.efficiency.network


_AMPERE = Efficiency(products=0.76, attention=0.45, memory=0.80, node=0.77, network=0.90)
_HOPPER = Efficiency(products=0.64, attention=0.50, memory=0.87, node=0.77, network=0.90)

H100 = Machine(
    name="h100",
    peak_tflops={"bf16": 989.0, "fp8": 1979.0, "fp32": 67.0},
    memory_gib=80.0,
    memory_gbps=3350.0,
    gpus_per_node=8,
    node_gbps=450.0,
    network_gbps=50.0,
    node_latency_us=5.7,
    network_latency_us=14.0,
    efficiency=_HOPPER,
)
BUILT_IN = {
    machine.name: machine
    for machine in (
        Machine(
            name="a100_80gb",
            peak_tflops={"bf16": 312.0, "fp32": 19.5},
            memory_gib=80.0,
            memory_gbps=2039.0,
            gpus_per_node=8,
            node_gbps=300.0,
            network_gbps=25.0,
            node_latency_us=7.1,
            network_latency_us=14.0,
            efficiency=_AMPERE,
        ),
        H100,
        replace(H100, name="h200", memory_gib=141e9 / 2**30, memory_gbps=4800.0),
        replace(
            H100,
            name="b200",
            peak_tflops={"bf16": 2250.0, "fp8": 4500.0, "fp32": 75.0},
            memory_gib=180e9 / 2**30,
            memory_gbps=8000.0,
            node_gbps=900.0,
        ),
    )
}
"""Nodes of 8 GPUs, each with a network card of its own: 200 Gb/s at A100, 400 Gb/s at the others."""

_NUMBERS = tuple(field.name for field in fields(Machine) if field.name.endswith(("_gib", "_gbps", "_us")))
SHARES = tuple(field.name for field in fields(Efficiency))


def _positive(path: Path, name: str, value: Any, most: float = math.inf) -> float:
    """The number of a machine file; UserError that names it where it is impossible."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= most or value == math.inf:
        limit = f"above 0 and at most {most:g}" if most < math.inf else "above 0"
        raise UserError(f"{path}: {name} is {value!r}; it must be a number {limit}")
    return float(value)


def _mapping(path: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {name} is {value!r}; it must be a table of names and numbers")
    return {str(key): item for key, item in value.items()}


def _merged(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The file's content over that of its ``base``."""
    base = content.pop("base", None)
    if base is None:
        return content
    if base not in BUILT_IN:
        raise UserError(f"{path}: base is {base!r}; known: {', '.join(BUILT_IN)}")
    known = as_content(BUILT_IN[base])
    for name in ("peak_tflops", "efficiency"):
        content[name] = known[name] | _mapping(path, name, content.get(name, {}))
    return known | {"name": path.stem} | content


def as_content(machine: Machine) -> dict[str, Any]:
    """A machine as its file has it."""
    content = {field.name: getattr(machine, field.name) for field in fields(machine)}
    content["peak_tflops"] = dict(machine.peak_tflops)
    content["efficiency"] = vars(machine.efficiency).copy()
    return content


def _checked(path: Path, content: dict[str, Any]) -> Machine:
    known = {field.name for field in fields(Machine)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise UserError(f"{path}: {unknown[0]} is not a field of a machine; there are base, {', '.join(sorted(known))}")
    content = {"name": path.stem} | content
    missing = [name for name in sorted(known) if name not in content]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} is missing; give it, or base: {' or '.join(BUILT_IN)}")
    shares = _mapping(path, "efficiency", content["efficiency"])
    for name in SHARES:
        if name not in shares:
            raise UserError(f"{path}: efficiency.{name} is missing")
    peaks = _mapping(path, "peak_tflops", content["peak_tflops"])
    count = content["gpus_per_node"]
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"{path}: gpus_per_node is {count!r}; it must be a whole number of at least 1")
    return Machine(
        name=str(content["name"]),
        peak_tflops={name: _positive(path, f"peak_tflops.{name}", value) for name, value in peaks.items()},
        gpus_per_node=count,
        efficiency=Efficiency(**{name: _positive(path, f"efficiency.{name}", shares[name], 1.0) for name in SHARES}),
        **{name: _positive(path, name, content[name]) for name in _NUMBERS},
    )


def find_machine(name: str) -> Machine:
    """A machine by name, or from a YAML file. UserError that lists the known ones, or names the field that is wrong."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = Path(name)
    if not path.is_file():
        raise UserError(f"--machine {name} is neither a known machine ({', '.join(BUILT_IN)}) nor a file")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from None
    return _checked(path, _merged(path, _mapping(path, "its content", content)))
