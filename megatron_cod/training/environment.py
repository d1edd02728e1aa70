"""Imported before Megatron: prepares what Megatron reads while it is imported."""

import warnings

from megatron_cod import cpu

if not cpu.has_cuda():
    cpu.prepare_environment()
# Megatron warns a dozen times, on every rank, of optional packages; the backend in use is said once, in our log.
warnings.filterwarnings("ignore", message=".*(Transformer Engine|[Tt]ransformer-engine|Apex)")
