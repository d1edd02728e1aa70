"""Whatever sources set in an object of Megatron's or torch's, or hook into one, is a row of the tables of hooks."""

import ast
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from megatron_cod.megatron_hooks import HOOKED, tables
from tests.conftest import ROOT

PACKAGE = ROOT / "megatron_cod"

# What the scan finds and is none of Megatron's or torch's names: pattern of sites -> what it is.
OURS = {
    "adaptations/table.py put_in: setattr holder": "puts in the rows of cpu.ADAPTED and torch_only.TORCH_ADAPTED",
    "* *: args.*": "arguments, not code of Megatron's",
    "* *: setattr args": "arguments",
    "adaptations/cpu.py _as_one_process.wrapper: vars(args).update": "arguments",
    "* *: raw.*": "a plain parse of the command line",
    "training/flags/token_counts.py in_samples: setattr raw": "a plain parse",
    "schemes/imports.py _Import.__call__: setattr namespace": "a plain parse",
    "training/start/*: start.*": "our own start",
    "* *: ctx.*": "what a function of ours saves for its backward",
    "__init__.py __getattr__: globals()[name]": "our own module",
    "former_paths.py FormerPaths.exec_module: module.__dict__['__getattr__']": "our own module",
    "cli/convert.py main: os.environ['CUDA_VISIBLE_DEVICES']": "a conversion is computed on the CPU",
    "cli/main.py run: sys.argv": "the words of the command that is started",
    "cli/preflight.py main: settings.*": "our own arguments",
    "cli/*.py main: warnings.simplefilter": "of a process that trains nothing",
    "cli/prune.py main: model.config.megatron_cod": "our own key",
    "cli/rehearse.py main: logging.getLogger(name).setLevel": "of a process that trains nothing",
    "cli/training.py _parse: parser.error": "our own parser",
    "cli/training.py main: os.environ.setdefault": "torchrun's default",
    "cli/completion.py script: *": "parsers of our own commands",
    "training/monitoring/live_panel.py LivePanel.__init__: self._console.show_cursor": "rich's console, made here",
    "cli/training_help.py parser_of: os.environ['COLUMNS']": "of a process that writes help texts",
    "training/torchrun.py main: os.environ[helper_processes.LAUNCHER]": "a variable of our own",
    "data/tokenizers/huggingface_library.py *: os.environ.setdefault": "a variable of Hugging Face's tokenizers",
    "rehearsal/launch.py *: os.environ*": "the variables of a launch that is only planned",
    "cli/scheme_comparison.py check: os.environ*": "set back to what it was",
    "planner/* *: setattr new": "arguments of a layout that is only planned",
    "planner/suggest.py changed_batch: new.*": "arguments of a layout that is only planned",
    "launch/rank_logs.py *": "this process's output",
    "training/run.py train: run.observers": "our own run",
    "training/run.py train: run.evaluations": "our own run",
    "training/validation/*: self._args.*": "arguments",
    "training/validation/evaluations.py *: writer.is_silent": "our own writer",
    "training/data/batches.py _only: config.*": "a configuration of datasets that is made here",
    "training/faults/time_limit.py TimeLimit.of.note: run.sigterm": "our own run",
    "training/torchrun.py Agent._invoke_run: Agent.reason": "our own class",
    "schemes/depth.py bind_depth_factor: carrier.depth_factor": "our own norms and joins",
    "backends/compiled_layers.py *: module.compiled_factor": "our own norms and joins",
    "schemes/post_norm.py PostNormJoin.take: norm.after_residual": "our own norm",
    "schemes/residual.py *: join.*": "our own joins",
    "schemes/streams.py bind_streams: join.opens": "our own joins",
    "schemes/streams.py open_outside: module.opens": "our own joins",
    "rehearsal/worker.py _keep_in_range: batches.get_batch": "our own function",
    "benchmark/monitor.py time_monitor: engines[*].forward_step": "our own engine",
    "preflight/table.py run_checks: here.shared": "our own object",
    "analysis/compare.py _recorded: result.*": "our own result",
    "huggingface/generation.py checkpoint_tokenizer: found.chat_template": "a tokenizer of transformers'",
    "data/chat/layouts.py *: chat.*": "our own chat",
    "data/chat/samples.py *: counts.*": "our own counts",
    "data/preprocessing/encode.py _encode_batch: writer.empty": "our own writer",
    "data/evaluation/texts.py read_texts: held.text_bytes": "our own set",
    "data/tokenizers/libraries.py _cutting_of_pieces: spec.add_dummy_prefix": "a copy of SentencePiece's settings",
    "data/tokenizers/native_files.py _tekken: tokenizer.post_processor": "a tokenizer that is made here",
    "data/preprocessing/worker_pool.py _start_worker: places.value": "shared memory",
    "data/reading/parts.py _read_text: batch.*": "our own batch",
    "data/tokenizers/word_cache.py *: self.*": "our own cache",
}
HOOKS = {"saved_tensors_hooks", "addFilter", "patch", "object", "add_safe_globals", "filterwarnings", "simplefilter"}
SETTERS = {"setattr", "delattr", "object.__setattr__"}


def _targets(node: ast.AST) -> list[ast.expr]:
    """What a statement sets or deletes."""
    if isinstance(node, ast.Assign | ast.Delete):
        given = node.targets
    elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For):
        given = [node.target]
    else:
        given = [item.optional_vars for item in node.items if item.optional_vars] if isinstance(node, ast.With) else []
    return [one for target in given for one in (target.elts if isinstance(target, ast.Tuple | ast.List) else [target])]


def _of_itself(target: ast.Attribute) -> bool:
    return isinstance(target.value, ast.Name) and target.value.id in ("self", "cls")


def _is_namespace(target: ast.Subscript) -> bool:
    """``vars(x)[...]``, ``x.__dict__[...]``, ``sys.modules[...]``, and the environment."""
    held = ast.unparse(target.value)
    return held.startswith(("vars(", "globals(")) or held.endswith((".__dict__", "sys.modules", "os.environ"))


def _set_by(node: ast.AST) -> list[str]:
    return [
        ast.unparse(one)
        for one in _targets(node)
        if (isinstance(one, ast.Attribute) and not _of_itself(one))
        or (isinstance(one, ast.Subscript) and _is_namespace(one))
    ]


def _called(node: ast.AST) -> list[str]:
    if not isinstance(node, ast.Call):
        return []
    function = ast.unparse(node.func)
    name = function.rpartition(".")[2]
    if function in SETTERS:
        return [f"{function} {ast.unparse(node.args[0])}"]
    if function.startswith(("vars(", "os.environ.")) or ".__dict__." in function:
        return [function] if name in ("update", "setdefault", "pop") else []
    is_hook = "." in function and (name.startswith("register_") or name in HOOKS or name == "setLevel")
    return [function] if is_hook else []


def sites_in(text: str, file: str) -> set[str]:
    """``file function: what`` for all that a source sets in other objects or hooks into them."""

    def walk(node: ast.AST, path: tuple[str, ...]) -> set[str]:
        sites = {f"{file} {'.'.join(path)}: {what}" for what in (*_set_by(node), *_called(node))}
        named = isinstance(node, ast.FunctionDef | ast.ClassDef)
        for child in ast.iter_child_nodes(node):
            sites |= walk(child, (*path, node.name) if named else path)
        return sites

    return walk(ast.parse(text), ())


def all_sites() -> set[str]:
    return {
        site
        for path in PACKAGE.rglob("*.py")
        for site in sites_in(path.read_text(), str(path.relative_to(PACKAGE)))
        if path.name != "__main__.py"
    }


def unlisted(sites: set[str]) -> set[str]:
    patterns = [*OURS, *(pattern for row in HOOKED for pattern in row.sites)]
    return {site for site in sites if not any(_fits(site, pattern) for pattern in patterns)}


def _fits(site: str, pattern: str) -> bool:
    return fnmatchcase(site, pattern.replace("[", "[[]"))


def test_every_name_that_is_set_or_hooked_is_in_a_table():
    assert unlisted(all_sites()) == set(), "name these in megatron_hooks.HOOKED, or in OURS"


def test_tables_name_existing_places_only():
    sites = all_sites()
    patterns = [*OURS, *(pattern for row in HOOKED for pattern in row.sites)]
    assert [pattern for pattern in patterns if not any(_fits(site, pattern) for site in sites)] == []


PLANTED = {
    "an attribute of a module": (
        "import megatron.training.training as loop\nloop.train_step = None",
        "loop.train_step",
    ),
    "an attribute of an object": ("def f(model):\n    model.forward = None", "model.forward"),
    "an attribute of what self holds": (
        "class A:\n    def f(self):\n        self.model.forward = None",
        "self.model.forward",
    ),
    "several at once": ("def f(a, b):\n    a.x, b.y = 1, 2", "b.y"),
    "setattr": ("def f(model, name):\n    setattr(model, name, None)", "setattr model"),
    "its own setattr": ("def f(model):\n    object.__setattr__(model, 'x', 1)", "object.__setattr__ model"),
    "vars": ("def f(model):\n    vars(model)['forward'] = None", "vars(model)['forward']"),
    "vars, updated": ("def f(model):\n    vars(model).update(x=1)", "vars(model).update"),
    "a module's dictionary": ("import torch\ntorch.cuda.__dict__['x'] = 1", "torch.cuda.__dict__['x']"),
    "a module as a whole": ("import sys\nsys.modules['apex'] = None", "sys.modules['apex']"),
    "a variable that Megatron reads": ("import os\nos.environ['MAKEFLAGS'] = 'x'", "os.environ['MAKEFLAGS']"),
    "the same, by default": ("import os\nos.environ.setdefault('NCCL_DEBUG', 'x')", "os.environ.setdefault"),
    "deletion": ("import torch\ndel torch.cuda.synchronize", "torch.cuda.synchronize"),
    "a hook": ("def f(model):\n    model.register_full_backward_hook(print)", "model.register_full_backward_hook"),
    "a patch of unittest's": ("from unittest import mock\nmock.patch('torch.zeros')", "mock.patch"),
    "one object of unittest's": ("from unittest import mock\nmock.patch.object(x, 'y')", "mock.patch.object"),
    "a logger": (
        "import logging\nlogging.getLogger('megatron').addFilter(f)",
        "logging.getLogger('megatron').addFilter",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_scan_finds_a_new_one(name):
    text, what = PLANTED[name]
    found = sites_in(text, "training/new.py")
    assert any(site.endswith(f": {what}") for site in unlisted(found)), found


def test_each_row_has_a_reason_and_a_place():
    assert all(row.reason and row.how and row.sites for row in HOOKED)
    assert len({row.name for row in HOOKED}) == len(HOOKED)


def test_the_page_is_that_of_the_tables():
    page = Path(ROOT / "docs" / "megatron_hooks.md").read_text()
    assert page.endswith(tables() + "\n"), "print them: python -m megatron_cod.megatron_hooks"
