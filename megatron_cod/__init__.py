"""Megatron-Core pretraining with LayerNorm Scaling (arXiv 2502.05795), the cure for the Curse of Depth.

The names of ``__all__`` are imported when they are first used (PEP 562), so that importing the package takes neither torch
nor Megatron; ``__init__.pyi`` has their types, and docs/api.md says what they do.
"""

import importlib

from megatron_cod import former_paths

__version__ = "0.2.0"

former_paths.install()

_MODULES = {
    "megatron_cod.schemes.depth": ("depth_factor",),
    "megatron_cod.schemes.row": ("Scheme",),
    "megatron_cod.schemes.table": ("SCHEMES", "register_scheme"),
    "megatron_cod.pipeline": ("PipelineSplit", "StagePlan", "plan_pipeline"),
    "megatron_cod.depth_map": ("StageLayers", "check_depth_map", "stage_layers"),
    "megatron_cod.huggingface.export_job": ("ExportJob",),
    "megatron_cod.huggingface.export": ("export_model",),
    "megatron_cod.huggingface.importing": ("ImportJob", "import_model"),
    "megatron_cod.huggingface.memory": ("load_as_transformers",),
    "megatron_cod.data.preprocessing.job": ("PreprocessJob",),
    "megatron_cod.data.preprocessing.run": ("preprocess",),
    "megatron_cod.data.tokenizers.choice": ("TokenizerChoice",),
    "megatron_cod.analysis.metrics": ("Metrics", "read_metrics"),
    "megatron_cod.errors": ("UserError",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'megatron_cod' has no attribute {name!r}")
    if module.startswith(("megatron_cod.huggingface", "megatron_cod.data")):
        # They import Megatron, which reads then what this prepares where there is no GPU.
        importlib.import_module("megatron_cod.training.before_megatron")
    globals()[name] = found = getattr(importlib.import_module(module), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
