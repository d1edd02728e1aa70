"""Throughput: tokens per second, in total and per GPU, and MFU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PEAK_TFLOPS = {
    "H200": 989.0,
    "H100": 989.0,  # SXM; the PCIe card does 756
    "H800": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
}
"""Dense bf16 by NVIDIA's data sheets, by a part of torch's device name; first match."""


def peak_tflops(given: float | None) -> float | None:
    """TFLOP/s of this device in dense bf16: the user's, or the table's; None without either."""
    if given is not None:
        return given
    if not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_name()
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in device), None)


@dataclass(frozen=True)
class Job:
    """What rates are computed with."""

    processes: int
    tokens_per_sample: float
    """The sequence length, or less where rows hold padding."""
    flops_per_sample: float
    """Forward and backward of one sequence, as Megatron counts them: recomputation omitted."""
    peak_tflops: float | None
    """Of one device; None where it is not known."""


@dataclass(frozen=True)
class Rate:
    """Samples in seconds of a job."""

    job: Job
    samples: float
    seconds: float

    @property
    def tokens(self) -> float:
        """Tokens a second, over all processes."""
        return self.samples * self.job.tokens_per_sample / self.seconds

    @property
    def tokens_each(self) -> float:
        """Tokens a second of one process, that is one GPU."""
        return self.tokens / self.job.processes

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation, 0 to 1 (Chowdhery et al., arXiv 2204.02311, B)."""
        if self.job.peak_tflops is None:
            return None
        done = self.job.flops_per_sample * self.samples / self.seconds
        return done / (self.job.processes * self.job.peak_tflops * 1e12)

    def text(self) -> str:
        """Of a progress line."""
        each = f"{self.tokens_each:,.0f} each" if self.job.processes > 1 else ""
        share = "" if self.mfu is None else f"MFU {self.mfu:.1%}"
        more = ", ".join(part for part in (each, share) if part)
        return f"{self.tokens:,.0f} tokens/s{f' ({more})' if more else ''}"

    def scalars(self) -> dict[str, float]:
        """Under the names of the metrics."""
        found = {"tokens per second": self.tokens, "tokens per second and GPU": self.tokens_each}
        return found if self.mfu is None else {**found, "MFU": self.mfu}
