"""What a failed assertion of Megatron's argument validation asks for, in flags: many quote an attribute, or nothing.

The assertion is read from Megatron's source. tests/training/test_megatron_assertions.py lists all of them, so that one
which this cannot put into flags is found when it is added. Imports nothing but the standard library, as ``errors.py`` does.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

RENAMED = {
    "check_for_nan_in_loss_and_grad": "--no-check-for-nan-in-loss-and-grad",
    "gradient_accumulation_fusion": "--no-gradient-accumulation-fusion",
    "add_bias_linear": "--disable-bias-linear",
    "layernorm_zero_centered_gamma": "--apply-layernorm-1p",
    "use_dist_ckpt": "--ckpt-format torch_dist",
    "transformer_pipeline_model_parallel_size": "--pipeline-model-parallel-size",
    "virtual_pipeline_model_parallel_size": "--num-virtual-stages-per-pipeline-rank",
    "data_parallel_size": "the number of data-parallel replicas",
    "world_size": "the number of processes",
}
"""Attributes that are no flag by their own name -> the flag that sets them, or what they are."""
_TURNED_OFF = frozenset({"check_for_nan_in_loss_and_grad", "gradient_accumulation_fusion", "add_bias_linear"})
"""Those whose flag turns them off."""
_OWN_WORDS = {
    "args.data_path is None or args.data_args_path is None": "give one of --data-path and --data-args-path",
    "any((elt is not None for elt in [args.train_data_path, args.valid_data_path, args.test_data_path])) is False or "
    "args.per_split_data_args_path is None": "give --per-split-data-args-path, or --train-data-path and its like, not both",
    "self.offload_modules is not None and len(self.offload_modules) > 0": "--offload-modules must name modules",
}
"""Conditions that read badly word by word."""
_LOCAL = {
    "dc": "the GPU's compute capability",
    "num_stages": "the number of stages in --pipeline-model-parallel-layout",
}
_LOCAL |= {"num_layers": "--num-layers", "num_layers_per_pipeline_stage": "layers in each pipeline stage"}
_LOCAL |= {"total_model_size": "processes of one replica (TP x PP x CP)"}
_LOCAL |= {"num_training_iterations_per_inference_iteration": "global batches in each --perform-rl-step"}
_LOCAL |= {"num_generated_samples_per_inference_iteration": "samples in each --perform-rl-step"}
_LOCAL |= {"supported_position_types": "rope or none", "extra_tokens": "each --fim-*-token"}
"""Its local variables -> what they are."""
_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Eq: "must be",
    ast.NotEq: "must not be",
    ast.Gt: "must be above",
    ast.GtE: "must be at least",
    ast.Lt: "must be below",
    ast.LtE: "must be at most",
    ast.In: "must be one of",
    ast.NotIn: "must be none of",
}
FLAG = re.compile(r"(?<!\w)--[a-z]\w")


def flag_of(attribute: str) -> str:
    """The flag that sets an attribute of the arguments."""
    return RENAMED.get(attribute, "--" + attribute.replace("_", "-"))


def _operand(node: ast.expr) -> str:
    """A value, by the flags that set it."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return flag_of(node.attr)
    if isinstance(node, ast.Name):
        return _LOCAL.get(node.id, node.id)
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.List | ast.Tuple):
        return ", ".join("none" if _is_none(one) else _operand(one) for one in node.elts)
    if isinstance(node, ast.BinOp):
        sign = {ast.Mult: "x", ast.Add: "+", ast.Sub: "-", ast.Div: "/"}.get(type(node.op), "?")
        return f"{_operand(node.left)} {sign} {_operand(node.right)}"
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "prod":
        return f"the product of {_operand(node.args[0])}"
    return re.sub(r"\b(?:args|self)\.(\w+)", lambda found: flag_of(found[1]), ast.unparse(node))


def _given(node: ast.expr, wanted: bool) -> str:
    if isinstance(node, ast.Attribute) and node.attr in _TURNED_OFF:
        wanted = not wanted
    return f"{_operand(node)} {'must be given' if wanted else 'must not be given'}"


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _comparison(node: ast.Compare) -> str:
    left, operator, right = node.left, node.ops[0], node.comparators[0]
    if isinstance(operator, ast.Is | ast.IsNot):
        return _given(left, isinstance(operator, ast.IsNot))
    if isinstance(left, ast.BinOp) and isinstance(left.op, ast.Mod):
        return f"{_operand(left.left)} must be a multiple of {_operand(left.right)}"
    if isinstance(right, ast.Constant) and isinstance(right.value, bool):
        return _given(left, right.value)
    return f"{_operand(left)} {_OPERATORS[type(operator)]} {_operand(right)}"


def in_words(node: ast.expr) -> str:
    """What a condition asks for, in flags."""
    own = _OWN_WORDS.get(ast.unparse(node))
    if own is not None:
        return own
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return _comparison(node)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return _given(node.operand, False)
    if isinstance(node, ast.BoolOp):
        return (" or " if isinstance(node.op, ast.Or) else " and ").join(map(in_words, node.values))
    if isinstance(node, ast.Attribute):
        return _given(node, True)
    return _operand(node)


def flags_in(node: ast.expr) -> list[str]:
    """The attributes of the arguments that a condition reads."""
    read = [one for one in ast.walk(node) if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name)]
    return list(dict.fromkeys(one.attr for one in read if ast.unparse(one.value) in ("args", "self")))


@dataclass(frozen=True)
class Assertion:
    """An assertion of a source, and what it stands under."""

    test: ast.expr
    line: int
    last_line: int
    message: ast.expr | None
    under: str = ""
    """The flag of the innermost ``if args.flag``."""


def _flag_of_branch(node: ast.If) -> str:
    test = node.test
    if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.IsNot) and _is_none(test.comparators[0]):
        test = test.left
    is_flag = isinstance(test, ast.Attribute) and isinstance(test.value, ast.Name) and test.attr not in _TURNED_OFF
    return flag_of(test.attr) if is_flag else ""  # type: ignore[attr-defined]


def assertions(tree: ast.AST, under: str = "") -> Iterator[Assertion]:
    """All assertions of a source."""
    if isinstance(tree, ast.Assert):
        yield Assertion(tree.test, tree.lineno, tree.end_lineno or tree.lineno, tree.msg, under)
        return
    for child in ast.iter_child_nodes(tree):
        inner = under
        if isinstance(tree, ast.If):
            inner = (_flag_of_branch(tree) or under) if child in tree.body else ""
        yield from assertions(child, inner)


def _assertion_at(file: str, line: int) -> Assertion | None:
    try:
        tree = ast.parse(Path(file).read_text())
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None
    return next((one for one in assertions(tree) if one.line <= line <= one.last_line), None)


def _found(attributes: list[str], variables: dict[str, Any]) -> str:
    """The values that they have, where they are set."""
    holder = variables.get("args", variables.get("self"))
    values = ((name, getattr(holder, name, None)) for name in attributes)
    given = [f"{flag_of(name)} {value}" for name, value in values if value is not None and not isinstance(value, bool)]
    return f" (found {', '.join(given)})" if given else ""


def explain(error: BaseException) -> str | None:
    """One line for an assertion that failed in Megatron; None for another error, or where there is no source."""
    trace: TracebackType | None = error.__traceback__
    if not isinstance(error, AssertionError) or trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    frame = trace.tb_frame
    text = " ".join(str(error).split())
    if FLAG.search(text) or not str(frame.f_globals.get("__name__")).startswith("megatron."):
        return None
    asserted = _assertion_at(frame.f_code.co_filename, trace.tb_lineno)
    return None if asserted is None else line_of(asserted, text, frame.f_locals)


def line_of(asserted: Assertion, text: str, variables: dict[str, Any]) -> str:
    """The line for an assertion. text: its message on one line. variables: of the function that it is in."""
    missing = re.fullmatch(r"(\w+) argument is None", text)
    if missing:
        return (
            f"{flag_of(missing[1])} is missing: give it, or --recipe NAME, of which megatron-cod recipes list has some"
        )
    attributes = flags_in(asserted.test)
    if not text:
        words = in_words(asserted.test)
        under = f"with {asserted.under}, " if asserted.under and asserted.under not in words else ""
        return under + words + _found(attributes, variables)
    flags = ", ".join(f"{flag_of(name)}" for name in attributes)
    return f"{text.rstrip('.')}: see {flags}{_found(attributes, variables)}" if flags else text
