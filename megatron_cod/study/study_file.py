"""STUDY.yaml: what is compared, at which sizes and rates, with which text, and by which rule."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from megatron_cod.comparison.arms import Arm, parse_arms
from megatron_cod.errors import UserError
from megatron_cod.schemes.table import get_scheme, import_modules
from megatron_cod.study.shapes import Shape, shape_of, std_by_width
from megatron_cod.study.tuner import Grid, rounded
from megatron_cod.training.flags.imports import modules_of

BASELINES = ("pre_ln+normal", "pre_ln+scaled")
"""In every study, unless ``without-baselines`` names them."""
SAMPLE = "sample"
"""The value of ``text`` for the corpus that comes with the package."""
_SHAPE_KEYS = ("num-layers", "hidden-size", "ffn-hidden-size", "num-attention-heads")
_TUNED = ("lr", "init-method-std")
"""Flags that the study sets for every run."""


@dataclass(frozen=True)
class Rule:
    """How arms are compared: fixed before the first run. Printed as a sentence in plan and report."""

    standard_errors: float = 2.0

    def sentence(self) -> str:
        """What the report's decisions mean."""
        return (
            "Each arm runs at its own tuned rate with fresh seeds. Arms are compared by the paired differences of the "
            "final validation loss, seed by seed: an arm is better or worse only beyond "
            f"{self.standard_errors:g} standard errors of the mean difference and with all seeds of one sign. Runs that "
            "diverged stay in the table."
        )


@dataclass(frozen=True)
class Study:
    """A study file, checked. Its fields are what the digest is made of."""

    question: str
    recipe: dict[str, Any]
    """The base recipe's keys with the study's ``flags`` over them."""
    arms: tuple[str, ...]
    shapes: tuple[Shape, ...]
    grid: Grid
    tuning_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    """Of the final runs: other ones than those of tuning."""
    steps: int | None
    tokens_per_parameter: float | None
    text: str
    """``sample``, or the prefix of PREFIX_{train,valid}_text_document."""
    init_std: float | None
    """None: 0.02 x sqrt(1000 / hidden size)."""
    min_rate: float
    """Of the schedule, as a part of the peak."""
    rule: Rule

    def content(self) -> dict[str, Any]:
        """Everything that decides what the runs compute, as JSON has it."""
        return json.loads(json.dumps(asdict(self)))

    def digest(self) -> str:
        """Of the content."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()

    @property
    def tokens_per_step(self) -> int:
        return int(self.recipe["global-batch-size"]) * int(self.recipe["seq-length"])

    def steps_of(self, shape: Shape) -> int:
        """Training steps of a run."""
        if self.steps is not None:
            return self.steps
        assert self.tokens_per_parameter is not None
        return math.ceil(self.tokens_per_parameter * shape.non_embedding / self.tokens_per_step)

    def std_of(self, shape: Shape) -> float:
        """The standard deviation of the initial weights."""
        return self.init_std if self.init_std is not None else std_by_width(shape.hidden)


_REQUIRED = ("question", "recipe", "arms", "learning-rates", "seeds", "text", "rule")
_OPTIONAL: dict[str, Any] = {
    "without-baselines": [],
    "shapes": None,
    "depths": None,
    "non-embedding-parameters": None,
    "head-size": 32,
    "extend-rates": 2,
    "tuning-seeds": [1],
    "steps": None,
    "tokens-per-parameter": None,
    "init-std": "by-width",
    "min-rate": 0.1,
    "flags": {},
}


def read_study(path: Path) -> Study:
    """The study of a file. UserError, one line that names the key, for what makes no sense."""
    given = _read(path)
    _check_keys("study", given, (*_REQUIRED, *_OPTIONAL))
    missing = [key for key in _REQUIRED if key not in given]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing")
    values = {**_OPTIONAL, **given}
    steps, per_parameter = values["steps"], values["tokens-per-parameter"]
    if (steps is None) == (per_parameter is None):
        raise UserError(f"{path}: give steps or tokens-per-parameter, one of them")
    tuning, final = _seeds("tuning-seeds", values), _seeds("seeds", values)
    if set(tuning) & set(final):
        raise UserError(f"seeds {sorted(set(tuning) & set(final))} are tuning-seeds too: final runs need fresh ones")
    recipe = _recipe(path, values)
    import_modules(modules_of(recipe))  # before the arms: they may be schemes of the user's own
    return Study(
        question=str(values["question"]),
        recipe=recipe,
        arms=_arms(values),
        shapes=_shapes(values),
        grid=Grid(_rates(values["learning-rates"]), _whole("extend-rates", values["extend-rates"], 0)),
        tuning_seeds=tuning,
        seeds=final,
        steps=None if steps is None else _whole("steps", steps, 1),
        tokens_per_parameter=None if per_parameter is None else _number("tokens-per-parameter", per_parameter),
        text=str(values["text"]),
        init_std=None if values["init-std"] == "by-width" else _number("init-std", values["init-std"]),
        min_rate=_number("min-rate", values["min-rate"], zero=True),
        rule=_rule(values["rule"]),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"study file {path} does not exist") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"study file {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise UserError(f"study file {path} must hold 'key: value' lines")
    return {str(key): value for key, value in content.items()}


def _check_keys(what: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
            raise UserError(f"unknown {what} key {key!r}{hint}")


def _recipe(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    from megatron_cod.training.flags.recipe_files import load_recipe

    if not isinstance(values["flags"], Mapping):
        raise UserError("flags must hold 'argument-name: value' lines, as a recipe does")
    flags = {str(key).replace("_", "-"): value for key, value in values["flags"].items()}
    taken = [
        key for key in (*_SHAPE_KEYS, *_TUNED, "seed", "train-iters", "norm-scheme", "init-policy") if key in flags
    ]
    if taken:
        raise UserError(f"flags: {taken[0]} is set by the study for each run")
    recipe = {**load_recipe(path.parent / str(values["recipe"])), **flags}
    lacking = [
        key for key in ("global-batch-size", "micro-batch-size", "seq-length", "vocab-size") if key not in recipe
    ]
    if lacking:
        raise UserError(f"recipe {values['recipe']} has no {lacking[0]}; give it there or in flags")
    if not (recipe.get("swiglu") and recipe.get("normalization") == "RMSNorm" and recipe.get("disable-bias-linear")):
        raise UserError(f"recipe {values['recipe']}: shapes are counted with swiglu, RMSNorm and disable-bias-linear")
    return recipe


def _arms(values: Mapping[str, Any]) -> tuple[str, ...]:
    named = _list("arms", values["arms"])
    left_out = _list("without-baselines", values["without-baselines"])
    _check_keys("without-baselines", dict.fromkeys(left_out), BASELINES)
    both = sorted(set(named) & set(left_out))
    if both:
        raise UserError(f"{both[0]} is in arms and in without-baselines")
    names = [*(one for one in BASELINES if one not in named and one not in left_out), *named]
    arms = parse_arms(",".join(names))
    for arm in arms:
        if any(f"--{flag}" in arm.flags for flag in _TUNED):
            raise UserError(f"arm {arm.name}: the study sets {' and '.join(_TUNED)} for every run")
    same = {_function_of(arm): arm.name for arm in arms}
    for arm in arms:
        if same[_function_of(arm)] != arm.name:
            raise UserError(
                f"arms {arm.name} and {same[_function_of(arm)]} are the same; baselines are added by themselves"
            )
    return tuple(arm.name for arm in arms)


def _function_of(arm: Arm) -> frozenset[str]:
    """The arm's flags, with the scheme's own initialisation where it names none."""
    scheme = arm.flags[arm.flags.index("--norm-scheme") + 1]
    named = "--init-policy" in arm.flags
    return frozenset(arm.flags if named else (*arm.flags, "--init-policy", get_scheme(scheme).default_init))


def _shapes(values: Mapping[str, Any]) -> tuple[Shape, ...]:
    if (values["shapes"] is None) == (values["depths"] is None):
        raise UserError("give shapes, or depths and non-embedding-parameters")
    if values["depths"] is not None:
        if values["non-embedding-parameters"] is None:
            raise UserError("depths need non-embedding-parameters")
        parameters = _number("non-embedding-parameters", values["non-embedding-parameters"])
        head = _whole("head-size", values["head-size"], 2)
        depths = [_whole("depths", depth, 1) for depth in _list("depths", values["depths"])]
        return tuple(shape_of(depth, parameters, head) for depth in depths)
    found = []
    for shape in _list("shapes", values["shapes"]):
        if not isinstance(shape, Mapping) or set(shape) != set(_SHAPE_KEYS):
            raise UserError(f"each of shapes has the keys {', '.join(_SHAPE_KEYS)}")
        sizes = [_whole(key, shape[key], 1) for key in _SHAPE_KEYS]
        if sizes[1] % sizes[3]:
            raise UserError(f"hidden-size {sizes[1]} does not divide over num-attention-heads {sizes[3]}")
        found.append(Shape(*sizes))
    return tuple(found)


def _rates(given: Any) -> tuple[float, ...]:
    rates = tuple(rounded(_number("learning-rates", rate)) for rate in _list("learning-rates", given))
    if any(after <= before for before, after in pairwise(rates)):
        raise UserError(f"learning-rates {', '.join(f'{rate:g}' for rate in rates)} must increase")
    factors = [after / before for before, after in pairwise(rates)]
    if factors and max(factors) / min(factors) > 1.05:
        raise UserError("learning-rates must be a geometric grid: each the same factor above the one before")
    return rates


def _rule(given: Any) -> Rule:
    if not isinstance(given, Mapping):
        raise UserError("rule must hold its numbers: standard-errors: 2")
    _check_keys("rule", given, ("standard-errors",))
    return Rule(_number("standard-errors", given.get("standard-errors", 2.0)))


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or (not value and key != "without-baselines"):
        raise UserError(f"{key} must be a list, found {value!r}")
    return value


def _whole(key: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{key}: {value!r} is not a number of at least {least}")
    return value


def _number(key: str, value: Any, zero: bool = False) -> float:
    try:
        number = float(value)  # YAML takes 2e-3 for a word
    except (TypeError, ValueError):
        raise UserError(f"{key}: {value!r} is not a number") from None
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise UserError(f"{key}: {value!r} must be above 0")
    return number


def _seeds(key: str, values: Mapping[str, Any]) -> tuple[int, ...]:
    seeds = tuple(_whole(key, seed, 1) for seed in _list(key, values[key]))
    if len(set(seeds)) != len(seeds):
        raise UserError(f"{key} {list(seeds)}: each seed is given once")
    return seeds
