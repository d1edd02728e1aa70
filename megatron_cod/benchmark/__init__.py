"""Step times of schemes against each other and against transformers: what megatron-cod benchmark runs.

``timing`` and ``report`` know no model; ``engine`` builds Megatron models in one process; ``schemes`` and ``hf`` are the
two comparisons. Nothing here is imported by training.
"""

import warnings

# Before any file of this package imports Megatron.
import megatron_cod.training.before_megatron  # noqa: F401

warnings.filterwarnings("ignore", message=".*experimental")
