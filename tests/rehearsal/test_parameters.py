"""Planned parameters are the built model's, to the last one: every rank's part, and the model's total."""

import pytest

from tests.rehearsal.jobs import SMALL, layout, planned, rehearsed

MOE = ["--num-experts", "4", "--moe-ffn-hidden-size", "48", "--moe-token-dispatcher-type", "allgather"]
TIED = [*SMALL, "--unset", "untie-embeddings-and-output-weights"]
BIASED = [*SMALL, "--unset", "disable-bias-linear", "swiglu", "normalization", "position-embedding-type"]
MTP = ["--mtp-num-layers", "1"]

CASES = {
    "dense tp2": ([*SMALL, *layout(tp=2)], 2, (1,)),
    "dense pp2 vp2 first and last": ([*SMALL, *layout(pp=2, vp=2), "--global-batch-size", "8"], 2, (0, 1)),
    "uneven": ([*SMALL, *layout(pp=4), "--decoder-first-pipeline-num-layers", "2"], 4, (0, 2)),
    "gqa tp2 with qk norm": (
        [*SMALL, *layout(tp=2), "--group-query-attention", "--num-query-groups", "2", "--qk-layernorm"],
        2,
        (0,),
    ),
    "gqa with fewer groups than tp": (
        [*SMALL, *layout(tp=4), "--group-query-attention", "--num-query-groups", "2"],
        4,
        (0,),
    ),
    "kv channels": ([*SMALL, "--kv-channels", "24"], 1, (0,)),
    "tied one stage": (TIED, 1, (0,)),
    "tied pp2": ([*TIED, *layout(pp=2)], 2, (0, 1)),
    "biases, layernorm, learned positions": (
        [*BIASED, "--position-embedding-type", "learned_absolute", *layout(tp=2)],
        2,
        (0,),
    ),
    "moe ep2": ([*SMALL, *MOE, "--expert-model-parallel-size", "2"], 2, (0, 1)),
    "moe every second layer, shared expert, tp2": (
        [
            *(*SMALL, *MOE, *layout(tp=2, pp=2), "--moe-layer-freq", "2"),
            *("--moe-shared-expert-intermediate-size", "64", "--expert-tensor-parallel-size", "1"),
        ],
        4,
        (0, 2),
    ),
    "mtp on the last stage": ([*SMALL, *MTP, *layout(pp=2)], 2, (0, 1)),
    "mtp tied, stage of its own": (
        [*TIED, *MTP, *layout(pp=4), "--pipeline-model-parallel-layout", "Etttt|tttt|m|L"],
        4,
        (0, 1, 2, 3),
    ),
    "sandwich norms": ([*SMALL, *layout(pp=2), "--norm-scheme", "sandwich_ln"], 2, (0, 1)),
    "layerscale": ([*SMALL, *layout(tp=2), "--norm-scheme", "layerscale"], 2, (0,)),
    "skipinit": ([*SMALL, "--norm-scheme", "skipinit"], 1, (0,)),
    "shared gains": ([*SMALL, *layout(pp=2), "--norm-scheme", "layer_rope"], 2, (0, 1)),
    "hyper-connections": ([*SMALL, *layout(pp=2), "--norm-scheme", "hyper_connections"], 2, (0, 1)),
    "static hyper-connections": (
        [
            *SMALL,
            "--norm-scheme",
            "hyper_connections",
            "--hyper-connections-static",
            "--hyper-connections-streams",
            "2",
        ],
        1,
        (0,),
    ),
    "mhc": ([*SMALL, *layout(tp=2, pp=2), "--norm-scheme", "mhc", "--mhc-streams", "3"], 4, (0, 2)),
    "no final norm": ([*SMALL, *layout(pp=2), "--norm-scheme", "deepnorm"], 2, (1,)),
    "a factor on one norm": ([*SMALL, *layout(pp=2), "--lns-placement", "mlp", "--lns-exponent", "1"], 2, (1,)),
    "mtp moe": ([*SMALL, *MOE, *MTP], 1, (0,)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_the_count_is_the_built_model(name):
    flags, world, ranks = CASES[name]
    built = [rehearsed(flags, world, rank) for rank in ranks]  # Mismatch where one parameter is missing
    for report in built:
        stage = planned(flags, world).stages[report.pipeline_rank]
        assert stage.parameters == sum(chunk.parameters for chunk in report.chunks) > 0


@pytest.mark.parametrize("name", ["kv channels", "tied one stage", "mtp moe"])
def test_the_total_is_what_one_rank_holds_when_there_is_one(name):
    flags, world, _ = CASES[name]
    plan = planned(flags, world)
    assert plan.parameters == plan.stages[0].parameters


def test_the_total_does_not_depend_on_the_layout():
    model = [*SMALL, *MOE, *MTP, "--global-batch-size", "8"]
    totals = {planned([*model, *flags], 4).parameters for flags in (layout(), layout(tp=2), layout(tp=2, pp=2))}
    assert len(totals) == 1


def test_llama_7b_is_llama_7b():
    """6,738,415,616: the published Llama 7B with 32,000 tokens."""
    from megatron_cod.rehearsal.scale import ROWS, plan_of

    assert plan_of(next(row for row in ROWS if row.recipe == "llama_7b")).parameters == 6_738_415_616
