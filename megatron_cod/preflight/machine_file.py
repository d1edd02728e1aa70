"""What the preflight measured, as a machine file of the planner (``rehearse --time --machine FILE``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_cod.common.amounts import GIB
from megatron_cod.errors import UserError
from megatron_cod.planner.machine import BUILT_IN, SHARES, find_machine
from megatron_cod.preflight.bandwidth import bus_factor
from megatron_cod.preflight.table import Result


def _rates(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The slowest process of each, as a step waits for it: peaks and the share that attention reaches of them."""
    products = {name: min(one["products"][name] for one in ranks) for name in ranks[0]["products"]}
    attention = min(one["attention"] for one in ranks)
    return {
        "peak_tflops": {name: _figure(rate / 1e12) for name, rate in products.items()},
        "attention": _figure(min(1.0, attention / next(iter(products.values())))),
        "memory_gbps": _figure(min(one["memory"] for one in ranks) / 1e9),
        "memory_gib": _figure(min(one["memory_bytes"] for one in ranks) / GIB),
    }


def _figure(number: float) -> float:
    return float(f"{number:.4g}")


def _ring(figure: dict[str, Any]) -> tuple[float, float]:
    """(GB/s that each link of the ring carries, microseconds of one of its steps)."""
    ranks = figure["ranks"]
    steps = 2 * (ranks - 1)
    moving = max(figure["seconds"] - figure["latency"], 1e-9)
    return bus_factor(ranks) * figure["bytes"] / moving / 1e9, figure["latency"] / steps * 1e6


def links(figures: Sequence[dict[str, Any]], per_node: int) -> dict[str, float]:
    """node_gbps, network_gbps and their latencies, from the all_reduces that were measured: the slowest of each kind.

    What the job's machines do not have takes the figure of what they have: one node has no network, and nodes of one
    process no links within. UserError with one process, which has neither.
    """
    inside = [_ring(one) for one in figures if len(one["nodes"]) == 1]
    between = [one for one in figures if one["what"] == "pair"] or [one for one in figures if len(one["nodes"]) > 1]
    found: dict[str, tuple[float, float]] = {}
    if inside:
        found["node"] = min(rate for rate, _ in inside), max(latency for _, latency in inside)
    if between:
        slowest = min(between, key=lambda one: _ring(one)[0])
        rate, latency = _ring(slowest)
        crossings = len(slowest["nodes"]) - 1
        hops = slowest["ranks"] - 1
        own = found["node"][1] if inside else 0.0
        # A turn of the ring is its steps within nodes and those between them; each node's cards carry its members' part.
        found["network"] = rate / per_node, max(latency * hops - own * (hops - crossings), 1e-3) / crossings
    if not found:
        raise UserError("--machine-file: one process has no links to measure; start the preflight once for each GPU")
    either = next(iter(found.values()))
    return {
        name: _figure(value)
        for kind in ("node", "network")
        for name, value in zip((f"{kind}_gbps", f"{kind}_latency_us"), found.get(kind, either), strict=True)
    }


def machine_content(results: Sequence[Result], name: str) -> dict[str, Any]:
    """The fields of ``planner.machine.Machine``. A known GPU keeps its data-sheet peaks, so that MFU means the same."""
    figures = {result.check: result.outcome.figures for result in results}
    ranks = figures.get("speed", {}).get("ranks")
    if not ranks:
        raise UserError("--machine-file: the processes' speed was not measured; see the table above")
    counts = set(Counter(one["node"] for one in ranks).values())
    if len(counts) > 1:
        raise UserError(f"--machine-file: machines have {min(counts)} to {max(counts)} processes; give each as many")
    per_node = counts.pop()
    rates = _rates(ranks)
    shares = dict.fromkeys(SHARES, 1.0) | {"attention": rates.pop("attention")}
    content = {"name": name, "gpus_per_node": per_node, **rates, **links(figures["bandwidth"]["all_reduce"], per_node)}
    known = next(
        (one for one in BUILT_IN.values() if one.name.split("_")[0].upper() in ranks[0]["device"].upper()), None
    )
    measured = content["peak_tflops"]
    if known and measured["bf16"] <= known.peak_tflops["bf16"]:
        shares["products"] = _figure(measured["bf16"] / known.peak_tflops["bf16"])
        shares["attention"] = _figure(shares["attention"] * shares["products"])
        content["peak_tflops"] = dict(known.peak_tflops)
    return content | {"efficiency": shares}


def write_machine_file(path: Path, results: Sequence[Result]) -> None:
    """Write the file, and read it back as the planner does."""
    text = yaml.safe_dump(machine_content(results, path.stem), sort_keys=False)
    path.write_text(f"# Measured by megatron-cod preflight; the fields are those of docs/planner.md.\n{text}")
    find_machine(str(path))
