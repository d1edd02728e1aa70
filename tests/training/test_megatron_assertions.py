"""Every assertion of Megatron's argument validation becomes a line that names a flag; a new one must be classified."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from megatron.core.transformer import transformer_config
from megatron.training import arguments

from megatron_cod import refusals
from megatron_cod.errors import UserError, one_line
from megatron_cod.rehearsal.launch import read_launch
from megatron_cod.training.flags.parser import build_parser
from tests.rehearsal.jobs import SMALL

NO_FLAG = {
    "isinstance(pattern, str)": "argparse hands a string on",
    "isinstance(x, str)": "argparse hands a string on",
    "MultiStorageClientFeature.is_enabled() is False": "of Megatron's own parse, which is not used here",
    "hf_config_dict.hidden_act == 'silu'": "heterogeneous models are refused (docs/layouts.md)",
    "all((num == n_kv_heads_in_group[0] for num in n_kv_heads_in_group))": "heterogeneous models are refused",
    "args.world_size % total_model_size == 0": "refused before, with the flags (layout_checks.py)",
    "is_torch_min_version('2.4.0')": "the package needs torch 2.6",
    "is_torch_min_version('1.10.0a0')": "the package needs torch 2.6",
    "os.environ.get('CUDA_DEVICE_MAX_CONNECTIONS') != '1'": "its text names the variable, which is set here",
    "os.environ.get('CUDA_DEVICE_MAX_CONNECTIONS') == '1'": "its text names the variable, which is set here",
    "os.environ.get('CUDA_GRAPHS_USE_NODE_PRIORITY') == '1'": "its text names the variable and its value",
    "os.getenv('NVTE_CPU_OFFLOAD_V1', '0') == '1'": "its text names the variable and its value",
    "'expandable_segments:True' not in os.getenv('PYTORCH_CUDA_ALLOC_CONF', '') or os.getenv('NCCL_GRAPH_REGISTER', '') "
    "== '0'": "its text names both variables and their values",
    "dc[0] >= 8": "about the device: its text names grouped GEMM",
    "all((token is not None for token in extra_tokens))": "its text names the FIM tokens",
    "not self.use_kitchen": "its flags exist with the package kitchen alone",
    "is_te_min_version('2.8.0')": "its text names the version",
    "is_te_min_version('2.7.0')": "its text names the version",
    "is_te_min_version('2.12.0')": "its text names the version",
}
"""Condition -> why its line has no flag in it."""
MESSAGE_IS_MADE = {"getattr(args, arg) is not None": "hidden_size argument is None"}
"""Conditions whose message has the argument's name filled in."""


def message_of(node: ast.expr | None) -> str:
    """The constant parts of a message."""
    if node is None:
        return ""
    return "".join(one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str))


def cases() -> dict[str, refusals.Assertion]:
    tree = ast.parse(Path(inspect.getsourcefile(arguments)).read_text())
    config = ast.parse(Path(inspect.getsourcefile(transformer_config)).read_text())
    found = [*refusals.assertions(tree), *(one for one in refusals.assertions(config) if one.message is None)]
    return {f"{one.line}: {ast.unparse(one.test)}": one for one in found}


CASES = cases()


def line_of(one: refusals.Assertion) -> str:
    text = MESSAGE_IS_MADE.get(ast.unparse(one.test), message_of(one.message))
    return text if refusals.FLAG.search(text) else refusals.line_of(one, text, {})


@pytest.fixture(scope="module")
def flags() -> set[str]:
    return {flag for action in build_parser()._actions for flag in action.option_strings}


def test_there_are_as_many_as_the_source_has():
    text = Path(inspect.getsourcefile(arguments)).read_text()
    assert len(CASES) >= len(re.findall(r"^ +assert\b", text, re.MULTILINE)) > 150


@pytest.mark.parametrize("name", CASES)
def test_each_assertion_names_a_flag(name, flags):
    one = CASES[name]
    line = line_of(one)
    if ast.unparse(one.test) in NO_FLAG:
        return
    assert refusals.FLAG.search(line), f"{line!r}: add a row to NO_FLAG, or words to refusals.py"
    if one.message is None or ast.unparse(one.test) in MESSAGE_IS_MADE:
        assert not re.search(r"\b(args|self)\.|\bNone\b|==|[()]", line), line
    if not refusals.FLAG.search(message_of(one.message)):  # the names are ours
        named = set(re.findall(r"--[a-z][a-z0-9-]*[a-z0-9]", line.split(": see ")[-1]))
        assert {flag for flag in named if flag not in flags} <= {"--recipe"}, line


def test_no_row_is_stale():
    conditions = {ast.unparse(one.test) for one in CASES.values()}
    assert {*NO_FLAG, *MESSAGE_IS_MADE, *refusals._OWN_WORDS} <= conditions
    read = {attribute for one in CASES.values() for attribute in refusals.flags_in(one.test)}
    assert set(refusals.RENAMED) <= read


EXAMPLES = {
    "a batch size is missing": (["--unset", "micro-batch-size"], "--micro-batch-size must be given"),
    "both precisions": (["--fp16", "--bf16"], "with --fp16, --bf16 must not be given"),
    "no heads": (["--unset", "num-attention-heads"], "--num-attention-heads is missing: give it, or --recipe NAME"),
    "an interval of memory": (["--log-memory-interval", "3", "--log-interval", "2"],
        "--log-memory-interval must be a multiple of --log-interval (found --log-memory-interval 3, --log-interval 2)"),
    "a decay of the decay": (["--weight-decay-incr-style", "linear"], "--start-weight-decay must be given"),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "line"), EXAMPLES.values(), ids=EXAMPLES)
def test_lines_of_real_starts(flags, line):
    with pytest.raises(UserError) as raised:
        read_launch([*SMALL, *flags], 1)
    assert str(raised.value).startswith(line), raised.value


def test_other_errors_keep_their_text():
    def fails():
        assert not CASES, "ours"

    with pytest.raises(AssertionError) as raised:
        fails()
    assert refusals.explain(raised.value) is None
    assert one_line(ValueError("some  text")) == "some text"


def test_an_unknown_attribute_is_found(flags):
    """The mutant: an assertion that a later Megatron may add."""
    (one,) = refusals.assertions(ast.parse("if args.fp16:\n    assert args.no_such_argument > 0"))
    assert refusals.line_of(one, "", {}) == "with --fp16, --no-such-argument must be above 0"
    assert "--no-such-argument" not in flags
