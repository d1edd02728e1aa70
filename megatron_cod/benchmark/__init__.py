"""Step times of schemes against each other and against transformers: what tools/benchmark.py runs.

``timing`` and ``report`` know no model; ``engine`` builds Megatron models in one process; ``schemes`` and ``hf`` are the
two comparisons. Nothing here is imported by training.
"""

import warnings

from megatron_cod import cpu

if not cpu.has_cuda():
    # Before any file of this package imports Megatron: its decorators read this environment.
    cpu.prepare_environment()
warnings.filterwarnings("ignore", message=".*(Transformer Engine|[Tt]ransformer-engine|Apex|experimental)")
