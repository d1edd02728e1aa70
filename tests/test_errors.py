"""How a run ends on an error: a line for the user and exit code 2, or a fault, which keeps its traceback."""

import ast
import errno
import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.distributed import DistNetworkError
from torch.distributed.checkpoint.api import CheckpointException

from megatron_cod.errors import (
    INTERRUPTED,
    MAY_PASS,
    USER_ERROR,
    CommonError,
    Phase,
    UserError,
    bad_input,
    ending,
    megatron_refusals,
)
from megatron_cod.training.faults.out_of_memory import DeviceOutOfMemory
from megatron_cod.training.faults.saving import SaveError
from tests.conftest import ROOT

TOOL, START, SET_UP, TRAINING = Phase
RUN = (START, SET_UP, TRAINING)


def raised(module: str, code: str, **names: object) -> BaseException:
    """What this code raises as that of a module of this name."""
    try:
        exec(compile(code, f"{module}.py", "exec"), {"__name__": module, **names})
    except BaseException as error:
        return error
    raise AssertionError(f"{code} raises nothing")


def below(*modules: str, code: str) -> BaseException:
    """The same, called by code of other modules, the outermost first."""
    *above, last = modules
    found = raised(last, code)
    for module in reversed(above):
        found = raised(module, "raise error", error=found)
    return found


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def during(error: Exception, context: Exception) -> Exception:
    error.__context__, error.__suppress_context__ = context, True
    return error


LOST = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
FAULT = (MAY_PASS, True, True)
REFUSED = (USER_ERROR, True, False)
PASSES = (MAY_PASS, True, False)

# name: (error, {phase: (exit code, whether the trace is kept, whether it is a fault)})
KINDS: dict[str, tuple[BaseException, dict[Phase, tuple[int, bool, bool]]]] = {
    "ours": (UserError("--lr is missing"), dict.fromkeys(Phase, (USER_ERROR, False, False))),
    "ours, with its cause": (caused(UserError("x"), KeyError("y")), dict.fromkeys(Phase, REFUSED)),
    "ours, as a rank was lost": (
        during(UserError("x"), LOST),
        dict.fromkeys(RUN, (MAY_PASS, False, False)) | {TOOL: (USER_ERROR, False, False)},
    ),
    "of all ranks": (CommonError("x"), dict.fromkeys(Phase, (USER_ERROR, False, False))),
    "a fault of another rank": (CommonError("x", may_pass=True), dict.fromkeys(RUN, (MAY_PASS, False, False))),
    "a full disk": (SaveError("x", may_pass=False), dict.fromkeys(RUN, (USER_ERROR, False, False))),
    "a save that may pass": (SaveError("x", may_pass=True), dict.fromkeys(RUN, (MAY_PASS, False, False))),
    "no memory": (during(DeviceOutOfMemory("x"), LOST), dict.fromkeys(RUN, (USER_ERROR, False, False))),
    "Megatron's assertion": (
        raised("megatron.training.arguments", "assert 1 == 2"),
        {TOOL: FAULT, START: REFUSED, SET_UP: REFUSED, TRAINING: FAULT},
    ),
    "Megatron's RuntimeError": (
        raised("megatron.core.x", "raise RuntimeError('x')"),
        {TOOL: FAULT, START: REFUSED, SET_UP: REFUSED, TRAINING: FAULT},
    ),
    "an operator's RuntimeError, called by Megatron": (
        raised("megatron.core.x", "torch.zeros(2) @ torch.zeros(3)", torch=torch),
        dict.fromkeys(Phase, FAULT),
    ),
    "Megatron's KeyError": (raised("megatron.core.x", "{}['x']"), dict.fromkeys(Phase, FAULT)),
    "what Megatron calls": (
        below("megatron_cod.training.run", "megatron.training.arguments", "enum", code="raise ValueError('x')"),
        {TOOL: FAULT, START: REFUSED, SET_UP: FAULT, TRAINING: FAULT},
    ),
    "what we call": (
        below("megatron.training.training", "megatron_cod.model", "json", code="raise ValueError('x')"),
        dict.fromkeys(Phase, FAULT),
    ),
    "our ValueError": (raised("megatron_cod.model", "a, b = 1, 2, 3"), dict.fromkeys(Phase, FAULT)),
    "our assertion": (raised("megatron_cod.model", "assert 1 == 2"), dict.fromkeys(Phase, FAULT)),
    "ours, called by Megatron": (
        below("megatron.training.training", "megatron_cod.model", code="raise ValueError('x')"),
        dict.fromkeys(Phase, FAULT),
    ),
    "a lost rank": (LOST, dict.fromkeys(RUN, PASSES) | {TOOL: FAULT}),
    "a lost store": (DistNetworkError("x"), dict.fromkeys(RUN, PASSES) | {TOOL: FAULT}),
    "a file": (
        FileNotFoundError(errno.ENOENT, "No such file", "x"),
        dict.fromkeys(Phase, REFUSED) | {TRAINING: PASSES},
    ),
    "no room": (OSError(errno.ENOSPC, "No space left on device"), dict.fromkeys(Phase, REFUSED) | {TRAINING: PASSES}),
    "another OSError": (OSError("x"), dict.fromkeys(Phase, FAULT)),
    "a device without memory": (torch.OutOfMemoryError("x"), dict.fromkeys(Phase, REFUSED)),
    "torch's checkpoints": (CheckpointException("x", {}), dict.fromkeys(Phase, FAULT)),
    "interrupted": (KeyboardInterrupt(), dict.fromkeys(RUN, (INTERRUPTED, True, False))),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_error_has_its_ending(name):
    error, expected = KINDS[name]
    for phase, (code, keeps, fault) in expected.items():
        found = ending(error, phase)
        assert (found.code, found.keeps_trace, found.is_fault) == (code, keeps, fault), (phase, found)
        assert "\n" not in found.line
        assert ("this is a fault of megatron_cod" in found.line) is fault


def test_a_bare_assertion_of_megatrons_names_its_condition(tmp_path):
    source = tmp_path / "arguments.py"
    source.write_text("assert 1 == 2\n")
    try:
        exec(compile(source.read_text(), str(source), "exec"), {"__name__": "megatron.training.arguments"})
    except AssertionError as error:
        assert ending(error, START).line == "1 must be 2"


def test_a_damaged_file_is_named():
    with pytest.raises(UserError, match=r"^x.json cannot be read: KeyError: 'a'$"), bad_input("x.json"):
        {}["a"]
    with pytest.raises(ZeroDivisionError), bad_input("x.json"):
        1 / 0  # noqa: B018


def test_a_refusal_of_megatrons_keeps_its_cause():
    refused, ours = (
        raised("megatron.training.arguments", "assert 1 == 2"),
        raised("megatron_cod.model", "assert 1 == 2"),
    )
    with pytest.raises(UserError) as caught, megatron_refusals(START):
        raise refused
    assert caught.value.__cause__ is refused and ending(caught.value, START).keeps_trace
    with pytest.raises(AssertionError), megatron_refusals(START):
        raise ours


# ---- the sources

# Where a ValueError is raised anyway: what only our own code can get wrong.
API = {
    "megatron_cod/schemes/depth.py": "a layer number below 1: the depth factor's own check, independent of the rest",
    "megatron_cod/analysis/depth/estimate.py": "no samples: the callers refuse that",
    "megatron_cod/benchmark/timing.py": "unequal rounds: the engine makes them equal",
    "megatron_cod/benchmark/llama.py": "a parameter that our own table does not have",
}
# Errors that are not for the user, and who catches them.
CAUGHT = {
    "NotToBeHad": "data/corpus/make.py leaves the source out",
    "RunFailed": "the tools make their own line of it",
    "_Diverged": "comparison/runs.py records it",
    "RehearsalFailed": "megatron-cod rehearse reports it",
    "Mismatch": "megatron-cod rehearse reports it",
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in ("megatron_cod", "tools", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def raises_value_error(tree: ast.AST) -> bool:
    made = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None)
    return any(ast.unparse(one.func if isinstance(one, ast.Call) else one) == "ValueError" for one in made)


def test_raises_user_error_for_user_errors():
    found = {name for name, tree in sources() if raises_value_error(tree)}
    assert found == set(API)


@pytest.mark.parametrize("code", ["raise ValueError('x')", "raise ValueError", "if 1:\n raise ValueError() from None"])
def test_the_search_finds_one(code):
    assert raises_value_error(ast.parse(code))


def test_each_exception_of_ours_is_for_the_user_or_caught():
    bases = {
        node.name: {ast.unparse(base) for base in node.bases}
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }

    def is_a(name: str, wanted: Callable[[str], bool]) -> bool:
        return wanted(name) or any(is_a(base, wanted) for base in bases.get(name, ()))

    errors = {name for name in bases if is_a(name, lambda one: re.fullmatch(r"\w*(Error|Exception)", one) is not None)}
    assert {name for name in errors if not is_a(name, "UserError".__eq__)} == set(CAUGHT)
