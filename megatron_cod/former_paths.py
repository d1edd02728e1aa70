"""Module paths of version 0.1.0: an import of one is an import of the module that has its code now, with a warning.

Imported by ``megatron_cod`` itself, so it imports nothing beyond the standard library.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

PACKAGE = "megatron_cod."
MOVED = {
    "analysis.checkpoint_tensors": "checkpoint.tensors",
    "analysis.depth.surgery": "analysis.depth.block_removal",
    "checkpoint_files": "checkpoint.directory",
    "checkpoint_sums": "checkpoint.checksums",
    "counts": "launch.counts",
    "cpu": "adaptations.cpu",
    "cpu_optimizer": "adaptations.torch_optimizer",
    "data.arrow": "data.reading.arrow",
    "data.ascii_bpe": "data.tokenizers.ascii_bpe",
    "data.assemble": "data.preprocessing.assemble",
    "data.cuts": "data.tokenizers.word_boundaries",
    "data.documents": "data.reading.documents",
    "data.duplicates": "data.preprocessing.duplicates",
    "data.encode": "data.preprocessing.encode",
    "data.encoders": "data.tokenizers.document_encoder",
    "data.estimate": "data.preprocessing.estimate",
    "data.huggingface_library": "data.tokenizers.huggingface_library",
    "data.index_file": "data.datasets.index_file",
    "data.inputs": "data.reading.inputs",
    "data.inspect": "data.datasets.inspect",
    "data.job": "data.preprocessing.job",
    "data.left_out": "data.reading.skipped",
    "data.libraries": "data.tokenizers.libraries",
    "data.plan": "data.preprocessing.plan",
    "data.pool": "data.preprocessing.worker_pool",
    "data.preprocess": "data.preprocessing.run",
    "data.progress": "common.progress",
    "data.record": "data.datasets.manifest",
    "data.runs": "data.preprocessing.token_runs",
    "data.sentencepiece_training": "data.tokenizers.sentencepiece_training",
    "data.splits": "data.preprocessing.splits",
    "data.tokenizer_files": "data.tokenizers.files",
    "data.tokenizer_match": "data.datasets.tokenizer_match",
    "data.word_cache": "data.tokenizers.word_cache",
    "data.work_folder": "data.preprocessing.work_folder",
    "huggingface.architecture": "huggingface.families.architecture",
    "huggingface.checkpoint_writer": "checkpoint.writer",
    "huggingface.families.fields": "huggingface.families.config_fields",
    "huggingface.families.parts": "huggingface.families.shared_rows",
    "huggingface.partial": "huggingface.atomic_directory",
    "huggingface.progress": "common.progress",
    "huggingface.rows": "huggingface.families.mapping_rows",
    "huggingface.source": "huggingface.weights_reader",
    "huggingface.target": "huggingface.safetensors_writer",
    "identity": "checkpoint.scheme_record",
    "network": "launch.network",
    "preflight.meeting": "preflight.member_channel",
    "preflight.place": "preflight.process_place",
    "rehearsal.memory": "estimate.memory",
    "rehearsal.parameters": "estimate.parameters",
    "rehearsal.ranks": "estimate.ranks",
    "rehearsal.schedule": "estimate.schedule",
    "shared_directory": "launch.shared_directory",
    "training.agreement": "launch.start_agreement",
    "training.argument_checks": "training.flags.layout_checks",
    "training.arguments": "training.flags.parser",
    "training.backend_flags": "training.flags.defaults",
    "training.batch_sizes": "training.flags.batch_sizes",
    "training.batches": "training.data.batches",
    "training.blends": "data.datasets.blends",
    "training.checkpoints": "checkpoint.selection",
    "training.command_line": "training.flags.command_line",
    "training.data_section": "training.flags.data_section",
    "training.data_workers": "training.data.data_workers",
    "training.depth_monitor": "training.monitoring.depth_monitor",
    "training.depth_stats": "training.monitoring.stream_variance",
    "training.environment": "training.before_megatron",
    "training.failures": "errors",
    "training.faults.events": "checkpoint.events",
    "training.faults.flags": "training.flags.fault_flags",
    "training.faults.whereabouts": "training.faults.main_thread_state",
    "training.feed": "training.start.loader_preview",
    "training.fine_tuning_data": "training.fine_tuning.data",
    "training.fine_tuning_flags": "training.fine_tuning.flags",
    "training.head": "launch.rendezvous",
    "training.helper_processes": "launch.helper_processes",
    "training.launch": "launch.local_run",
    "training.launch_store": "launch.store",
    "training.loading": "training.start.loading",
    "training.monitor": "training.monitoring.metrics_writer",
    "training.optimizer_checks": "training.flags.optimizer_checks",
    "training.parameters": "training.monitoring.parameter_count",
    "training.progress": "launch.console_relay",
    "training.rank_logs": "launch.rank_logs",
    "training.recipes": "training.flags.recipes",
    "training.reporting": "training.monitoring.reporting",
    "training.retention": "checkpoint.retention",
    "training.schedule_checks": "training.flags.schedule_checks",
    "training.steps": "training.loop.step_hooks",
    "training.summary": "training.monitoring.summary",
    "training.throughput": "training.monitoring.throughput",
    "training.token_counts": "training.flags.token_counts",
    "training.torchrun_flags": "launch.torchrun_flags",
    "training.trained_with": "training.data.tokenizer_in_use",
    "versions": "launch.versions",
}
"""Former module -> present one, both without the package's name."""
BECAME_PACKAGES = {
    "data.reading": "data.reading.parts",
    "data.tokenizers": "data.tokenizers.choice",
    "training.fine_tuning": "training.fine_tuning.task",
}
"""Former modules whose name is a package's now -> the module of that package with their code."""
NAMES = {
    ("cpu", "Adapted"): "adaptations.table.Adapted",
    ("cpu", "missing_names"): "adaptations.table.missing_names",
    ("data.work_folder", "write_whole"): "common.files.write_whole",
    ("data.inputs", "InputStream"): "data.reading.compression.InputStream",
    ("data.inputs", "open_input"): "data.reading.compression.open_input",
    ("rehearsal.memory", "GIB"): "common.amounts.GIB",
    ("training.blends", "check_data"): "training.data.dataset_checks.check_data",
    ("training.checkpoints", "check_load"): "checkpoint.compatibility.check_load",
    ("training.checkpoints", "check_scheme"): "checkpoint.compatibility.check_scheme",
    ("training.failures", "fail"): "launch.exit_codes.fail",
    ("training.failures", "this_rank"): "console.this_rank",
    ("training.faults.events", "restarts"): "launch.scheduler.restarts",
    ("training.faults.events", "this_host"): "launch.scheduler.this_host",
    ("training.launch", "launch_alone"): "launch.single_process.launch_alone",
    ("training.recipes", "load_recipe"): "training.flags.recipe_files.load_recipe",
    ("training.retention", "Retention"): "training.faults.checkpoint_deletion.Retention",
    ("training.summary", "format_duration"): "common.amounts.format_duration",
    ("training.throughput", "tokens_text"): "common.amounts.tokens_text",
}
"""(former module, name) -> where the name is now, if not in the module that has the rest."""


def _found(former: str, name: str) -> Any:
    module, _, present = NAMES.get((former, name), f"{(MOVED | BECAME_PACKAGES)[former]}.{name}").rpartition(".")
    return getattr(importlib.import_module(PACKAGE + module), present)


def _names_of(former: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a former module."""

    def get(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {PACKAGE}{former} has no attribute {name!r}")
        return _found(former, name)

    return get


def name_in_former_module(package: str, name: str) -> Any:
    """For the ``__getattr__`` of a package that was a module. AttributeError for a name that it did not have."""
    former = package.removeprefix(PACKAGE)
    # ``from package import module`` asks here first; the former module is not imported for that.
    is_name = not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is None
    if is_name and hasattr(importlib.import_module(PACKAGE + BECAME_PACKAGES[former]), name):
        return _found(former, name)
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


class FormerPaths(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The last finder of ``sys.meta_path``: it is asked only for modules that nobody else has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        is_former = fullname.startswith(PACKAGE) and fullname.removeprefix(PACKAGE) in MOVED
        return importlib.machinery.ModuleSpec(fullname, self) if is_former else None

    def exec_module(self, module: ModuleType) -> None:
        former = module.__name__.removeprefix(PACKAGE)
        present = PACKAGE + MOVED[former]
        warnings.warn(f"{module.__name__} is {present} now", DeprecationWarning, stacklevel=2)
        importlib.import_module(present)
        module.__dict__["__getattr__"] = _names_of(former)


def install() -> None:
    """Once a process, by the package itself."""
    if not any(isinstance(finder, FormerPaths) for finder in sys.meta_path):
        sys.meta_path.append(FormerPaths())
