"""The models that are timed compute the same thing, and a benchmark of different things is refused."""

import pytest
import torch

from tests.distributed.launch import WorkerError, run_ranks

_SIZES = {"layers": 3, "hidden": 64, "heads": 4, "ffn": 176, "vocab": 128, "seq": 16, "batch": 2}


def _set_up(schemes):
    from megatron_cod.benchmark.engine import Engine, random_batches, start_megatron
    from megatron_cod.benchmark.llama import LlamaShape, TransformersLlama, from_megatron

    shape = LlamaShape(**_SIZES)
    args = start_megatron(
        ["--mock-data", "--eval-iters", "0", "--logging-level", "40", *shape.megatron_flags()], threads=1
    )
    args.init_policy = "normal"
    engines = {name: Engine(args, name) for name in schemes}
    first = dict(engines[schemes[0]].parameters())
    with torch.no_grad():
        for engine in engines.values():
            for name, parameter in engine.parameters():
                parameter.copy_(first[name.replace("layernorm.norm.", "layernorm.")])
    reference = TransformersLlama(shape, from_megatron(first.items(), shape.heads))
    return engines, reference, random_batches(args, 2)


def _logits_of_the_yardstick(rank):
    engines, _, batches = _set_up(["lns", "lns_activation", "pre_ln"])
    return {name: engine.logits(batches[0][0]) for name, engine in engines.items()}


def test_reference_model_equals_lns():
    (logits,) = run_ranks(1, _logits_of_the_yardstick)
    torch.testing.assert_close(logits["lns_activation"], logits["lns"], rtol=0, atol=1e-5)
    assert (logits["pre_ln"] - logits["lns"]).abs().max() > 1e-2


def _factors(rank):
    engines, *_ = _set_up(["lns", "lns+lns-exponent=0.25", "lns_scaled", "pre_ln"])
    last = {name: engine.model[0].module.decoder.layers[2].input_layernorm for name, engine in engines.items()}
    return {name: getattr(norm, "depth_factor", 1.0) for name, norm in last.items()}


def test_options_of_an_arm_end_with_it():
    (factors,) = run_ranks(1, _factors)
    assert factors == pytest.approx(
        {"lns": 3**-0.5, "lns+lns-exponent=0.25": 3**-0.25, "lns_scaled": 3**-0.5, "pre_ln": 1}
    )


def test_reference_model_is_no_registered_scheme():
    from megatron_cod.benchmark.activation_scaling import NAME, registered
    from megatron_cod.schemes.table import SCHEMES

    before = list(SCHEMES)
    with registered():
        assert NAME in SCHEMES
    assert list(SCHEMES) == before


def _compare(rank, break_it):
    from megatron_cod.benchmark.hf import compare

    engines, reference, batches = _set_up(["pre_ln", "lns"])
    with torch.no_grad():
        match break_it:
            case "weight":
                reference.model.model.layers[1].mlp.down_proj.weight[0] += 0.05
            case "factor":  # lns with the factor of the wrong layer
                engines["lns"].model[0].module.decoder.layers[2].input_layernorm.depth_factor = 1.0
            case "nan":
                reference.model.lm_head.weight[0, 0] = float("nan")
            case "learning rate":  # logits agree at first; only the training steps can tell
                for group in reference.optimizer.param_groups:
                    group["lr"] *= 20
    laps, notes = compare(engines, {"transformers": reference}, batches, rounds=2, warmup=4, clock="wall")
    return {name: len(times) for name, times in laps.items()}, notes


def _evaluate(rank, break_it):
    from megatron_cod.benchmark.hf import compare_evaluation

    engines, reference, _ = _set_up(["pre_ln", "lns"])
    rows = torch.randint(128, (5, 17), generator=torch.Generator().manual_seed(1))
    if break_it != "rows":  # a row begins with the last token of the one before
        rows[1:, 0] = rows[:-1, -1]
    if break_it == "weight":
        with torch.no_grad():
            reference.model.model.layers[1].mlp.down_proj.weight[0] += 0.5
    _, notes = compare_evaluation(engines, {"transformers": reference}, rows, 2, rounds=1, warmup=0, clock="wall")
    return notes


def test_evaluates_equal_models():
    (notes,) = run_ranks(1, _evaluate, None)
    assert [note.split(" and ")[0] for note in notes] == ["mean losses of pre_ln", "mean losses of lns"]


@pytest.mark.parametrize("break_it", ["weight", "rows"])
@pytest.mark.slow
def test_rejects_evaluations_of_different_models(break_it):
    with pytest.raises(WorkerError, match=r"pre_ln evaluates to .* and transformers to"):
        run_ranks(1, _evaluate, break_it)


@pytest.mark.slow
def test_times_equal_models():
    ((counts, notes),) = run_ranks(1, _compare, None)
    assert counts == {"transformers": 2, "pre_ln": 2, "lns": 2}
    assert [note.split(" and ")[0] for note in notes] == ["logits of pre_ln", "logits of lns", "losses of pre_ln"]


@pytest.mark.slow_except(
    "factor-lns does not compute what transformers does", "weight-pre_ln does not compute what transformers does"
)
@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        ("weight", "pre_ln does not compute what transformers does"),
        ("factor", "lns does not compute what transformers does"),
        ("nan", "pre_ln does not compute what transformers does"),
        ("learning rate", "pre_ln does not train as transformers does"),
    ],
)
def test_rejects_comparison_of_different_models(break_it, message):
    with pytest.raises(WorkerError, match=message):
        run_ranks(1, _compare, break_it)
