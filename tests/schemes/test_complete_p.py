"""CompleteP: its rules, in Megatron's optimizer at every layout, resumed and resharded, exported; wrong ones are caught."""

import re
from types import SimpleNamespace

import pytest

from megatron_cod.analysis.metrics import read_metrics
from megatron_cod.schemes.complete_p import CompletePOptions, branch_factor, group_rules
from megatron_cod.schemes.parameter_groups import Multipliers, set_rules, split_groups
from tests.conftest import ROOT, TINY
from tests.distributed.oracle_runs import within_tolerance
from tests.distributed.runs import PP2, at_step_4, losses, refuse, succeed
from tests.distributed.scheme_runs import ONE, differences
from tests.huggingface.megatron import ONE as ONE_PROCESS
from tests.huggingface.megatron import megatron_logits
from tests.huggingface.models import tokens, transformers_logits
from tests.programs import run_program

SCHEME = ["--norm-scheme", "complete_p", "--complete-p-base-hidden-size", "8"]
"""m_N = 4, m_L = 2 for the model of the debug recipe (width 32, 4 layers)."""
PP2_VPP2 = [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"]
TP2_SP = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
DECAY = ["--weight-decay", "0.1", "--use-distributed-optimizer"]
RESHARDS = ["--dist-ckpt-optim-fully-reshardable"]


def test_the_rules_are_those_of_the_papers_table():
    config = SimpleNamespace(num_layers=8, hidden_size=1024)
    whole, half = CompletePOptions(), CompletePOptions(complete_p_alpha=0.5)
    assert (whole.depth(config), whole.width(config)) == (4, 4)
    assert branch_factor(3, config, whole) == 1 / 4 and branch_factor(3, config, half) == 1 / 2
    rules = group_rules(config, whole)
    assert rules.outside == Multipliers(lr=1, weight_decay=1, eps=1 / 4)
    assert rules.matrices == Multipliers(lr=1 / 4, weight_decay=4, eps=1 / 16)
    assert rules.vectors == Multipliers(lr=1, weight_decay=1, eps=1 / 16)
    rules = group_rules(config, half)
    assert rules.matrices == Multipliers(lr=1 / 8, weight_decay=4, eps=1 / 8)
    assert rules.vectors == Multipliers(lr=1 / 2, weight_decay=1, eps=1 / 8)


@pytest.mark.parametrize("name", ["complete_p", "complete_p half"])
@pytest.mark.slow
def test_decay_is_that_of_the_oracle(name):
    found = differences(name, ONE, decay=0.5)
    assert within_tolerance(found), found


def missing_in_the_mlp() -> None:
    """The mutant: the attention's branch alone has its multiplier."""
    from megatron_cod.schemes.branch_scale import ScaledBranchJoin

    right, seen = ScaledBranchJoin.scaled, set()

    def scaled(self, branch):
        seen.add(id(self))
        return right(self, branch) if len(seen) % 2 else branch

    ScaledBranchJoin.scaled = scaled


def with_rules(**changed: Multipliers) -> None:
    from dataclasses import replace

    from megatron_cod.schemes.table import SCHEMES

    row = SCHEMES["complete_p"]
    SCHEMES["complete_p"] = replace(row, groups=lambda *rest: replace(group_rules(*rest), **changed))


def decay_not_rescaled() -> None:
    """The mutant: matrices have the run's weight decay."""
    with_rules(matrices=Multipliers(lr=1 / 4, weight_decay=1, eps=1 / 16))


def rate_of_norms_as_of_matrices() -> None:
    """The mutant: the rate of norms falls with the width."""
    with_rules(vectors=Multipliers(lr=1 / 4, eps=1 / 16))


def head_with_the_rate_of_matrices() -> None:
    """The mutant: Megatron's muP without its mark on the head: what is outside of blocks is scaled too."""
    with_rules(outside=Multipliers(lr=1 / 4, eps=1 / 4))


def plain_logits() -> None:
    """The mutant: logits are not divided by the width."""
    from megatron.core.models.common.language_module.language_module import LanguageModule

    LanguageModule._scale_logits = lambda self, logits: logits


MUTANTS = (
    missing_in_the_mlp,
    decay_not_rescaled,
    rate_of_norms_as_of_matrices,
    head_with_the_rate_of_matrices,
    plain_logits,
)


@pytest.mark.parametrize("mutate", MUTANTS, ids=[one.__name__ for one in MUTANTS])
@pytest.mark.slow_except("decay_not_rescaled")
def test_a_wrong_implementation_is_outside_the_tolerances(mutate):
    assert not within_tolerance(differences("complete_p", ONE, mutate, decay=0.5))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny):
    """A run of 8 steps at PP 2 x VPP 2 with the distributed optimizer, saved after 4 and 8."""
    folder = tmp_path_factory.mktemp("complete_p")
    flags = [*tiny, *SCHEME, *DECAY, *RESHARDS, *PP2_VPP2]
    [first, *_] = succeed(2, [*flags, "--save", str(folder), "--save-interval", "4"])
    assert "matrices: lr x 0.25, weight decay x 4, Adam's eps x 0.125" in first.output
    return folder


@pytest.mark.slow
def test_logs_the_rate_of_the_run(whole):
    """Of the embeddings, not of matrices, which have a quarter of it."""
    rates = read_metrics(whole / "metrics.jsonl").scalars["learning-rate"]
    assert max(rates.values()) > 0.5e-3  # the recipe's is 1e-3


def groups_of(args: SimpleNamespace) -> list[dict]:
    """As Megatron makes them: by override of the rate, and of the decay."""
    plain = {"max_lr": args.lr, "min_lr": args.min_lr, "wd_mult": 1.0, "is_decoupled_lr": False, "default_config": True}
    marked = {"max_lr": args.decoupled_lr, "default_config": False}
    return [dict(plain), plain | marked, plain | marked | {"wd_mult": 0.0}, plain | {"wd_mult": 0.0}]


def identifiers(groups: list[dict]) -> set[tuple]:
    """What Megatron finds the groups of a checkpoint by."""
    return {(one["max_lr"], one["min_lr"], one["wd_mult"], one["is_decoupled_lr"]) for one in groups}


def test_megatron_can_tell_the_groups_apart_before_and_after():
    """Else a resumed distributed optimizer gives a group the numbers of another."""
    args = SimpleNamespace(lr=1e-3, min_lr=1e-4, adam_eps=1e-8)
    split_groups(args)
    groups = groups_of(args)
    assert len(identifiers(groups)) == 4
    rules = group_rules(SimpleNamespace(num_layers=8, hidden_size=1024), CompletePOptions())
    for _ in range(2):  # the second time does nothing
        set_rules(groups, rules, args)
        assert len(identifiers(groups)) == 4 and args.decoupled_lr is None
        assert [one["max_lr"] for one in groups] == [1e-3 / 4, 1e-3, 1e-3, 1e-3]
        assert [one["min_lr"] for one in groups] == [1e-4 / 4, 1e-4, 1e-4, 1e-4]
        assert [one["wd_mult"] for one in groups] == [4, 1, 0, 0]
        assert [one["eps"] for one in groups] == pytest.approx([1e-8 / 16, 1e-8 / 4, 1e-8 / 4, 1e-8 / 16])
        assert [one["default_config"] for one in groups] == [False, True, True, False]


@pytest.mark.parametrize(
    ("world", "layout", "tolerance"),
    [(2, PP2_VPP2, 0.0), (1, [], 1e-5), (2, TP2_SP, 1e-5)],
    ids=["same", "one process", "tp2"],
)
@pytest.mark.slow
def test_resumes_exactly_and_at_another_layout(whole, tiny, tmp_path, world, layout, tolerance):
    stopped = at_step_4(whole, tmp_path / "stopped")
    train, _ = losses(whole)
    more = ["--load", str(stopped), "--save", str(tmp_path / "run"), "--save-interval", "4"]
    succeed(world, [*tiny, *SCHEME, *DECAY, *RESHARDS, *layout, *more])
    found, _ = losses(tmp_path / "run")
    assert max(abs(found[step] - train[step]) for step in (5, 6, 7, 8)) <= tolerance


@pytest.mark.slow
def test_exports_to_a_stock_llama(whole, tmp_path):
    out, recipe = tmp_path / "hf", ROOT / "recipes" / "debug.yaml"
    done = run_program("convert_hf.py", "export", "--checkpoint", whole, "--output", out)
    assert done.returncode == 0, done.stderr
    model = [flag for flag in TINY if flag not in ("--recipe", str(recipe))]
    ours = megatron_logits(whole, ONE_PROCESS, tokens(257), *model, *SCHEME, recipe=recipe)[..., :257]
    assert (transformers_logits(out, tokens(257)) - ours).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--complete-p-alpha", "0.4"], "--complete-p-alpha 0.4 must be at least 0.5 and at most 1"),
        (["--complete-p-alpha", "nan"], "--complete-p-alpha nan must be"),
        (["--complete-p-base-layers", "0"], "--complete-p-base-layers 0 must be at least 1"),
        (["--mtp-num-layers", "1"], "--mtp-num-layers"),
        (["--use-mup"], "--use-mup"),
        (["--decoupled-lr", "1e-3"], "--decoupled-lr"),
        (["--optimizer", "sgd"], "--optimizer sgd"),
    ],
)
def test_bad_input_is_one_line(tiny, flags, says):
    refuse(1, [*tiny, *SCHEME, *flags, "--dry-run"], re.escape(says))


def test_another_alpha_or_base_is_refused(whole, tiny):
    load = [*tiny, *DECAY, "--load", str(whole), "--dry-run"]
    refuse(1, [*load, *SCHEME, "--complete-p-alpha", "0.5"], "complete_p_alpha 1.0 .this run: 0.5.")
    refuse(1, [*load, *SCHEME[:3], "16"], "trained with (complete_p of|--mup-output-mult 0.25)")
    refuse(1, load, "trained with --norm-scheme complete_p")
