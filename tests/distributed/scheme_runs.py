"""Every scheme with its options, run and compared with the oracle; wrong ones as mutants."""

from safetensors.torch import load_file

from tests import oracle_schemes
from tests.distributed.engine import MODEL_FLAGS, Engine, shape_flags, start_megatron
from tests.distributed.launch import run_ranks
from tests.distributed.mapping import Layout
from tests.distributed.oracle_runs import SHAPE, VECTORS, compare, init_weights
from tests.oracle_schemes import Variant

SP = ("--sequence-parallel",)
ONE, FOUR, FOUR_SP = Layout(), Layout(tp=2, pp=2), Layout(tp=2, pp=2, flags=SP)
START = 5
"""Steps behind the weights: a residual warm-up is then under way."""


EPS = 1e-6
"""Adam's. With 1e-8 a gradient near 1e-8 turns rounding into a step of its own: for ``lns attention`` 50 of 418,880
weights were then over 1e-4 away, gradients being equal to 6e-7."""


COMPLETE_P = ["--complete-p-base-layers", "2", "--complete-p-base-hidden-size", "16"]
EPS_OF = {"mhc": 1e-5, "hyper_connections": 1e-5}
"""mHC's first mixing is of copies, which it leaves as they are: its gradient is rounding; and others are small."""


def eps_of(name: str) -> float:
    """Adam's in the runs of a variant."""
    return EPS_OF.get(VARIANTS[name][0].scheme, EPS)


VARIANTS = {
    "pre_ln": (Variant("pre_ln"), []),
    "lns": (Variant("lns"), []),
    "lns attention": (Variant("lns", placement="attention"), ["--lns-placement", "attention"]),
    "lns mlp": (Variant("lns", placement="mlp"), ["--lns-placement", "mlp"]),
    "lns branch output": (Variant("lns", placement="branch_output"), ["--lns-placement", "branch_output"]),
    "lns exponent 1": (Variant("lns", exponent=1.0), ["--lns-exponent", "1.0"]),
    "post_ln": (Variant("post_ln"), []),
    "mix_ln": (Variant("mix_ln"), []),
    "mix_ln 4": (Variant("mix_ln", post=4), ["--mix-ln-post-layers", "4"]),
    "mix_ln 5": (Variant("mix_ln", post=5), ["--mix-ln-post-layers", "5"]),
    "deepnorm": (Variant("deepnorm"), []),
    "sandwich_ln": (Variant("sandwich_ln"), []),
    "layerscale": (Variant("layerscale"), []),
    "skipinit": (Variant("skipinit"), []),
    "layer_rope": (Variant("layer_rope"), []),
    "layer_rope peri": (
        Variant("layer_rope", peri=True, base=1e4),
        ["--layer-rope-peri", "--layer-rope-base", "1e4"],
    ),
    "complete_p": (Variant("complete_p"), COMPLETE_P),
    "complete_p half": (Variant("complete_p", alpha=0.5), [*COMPLETE_P, "--complete-p-alpha", "0.5"]),
    "hyper_connections": (Variant("hyper_connections"), []),
    "hyper_connections static": (
        Variant("hyper_connections", static=True, streams=3),
        ["--hyper-connections-static", "--hyper-connections-streams", "3"],
    ),
    "mhc": (Variant("mhc"), []),
    "mhc 3": (Variant("mhc", streams=3), ["--mhc-streams", "3"]),
    "pre_ln warm-up": (Variant("pre_ln", warmup=2), ["--residual-warmup-steps", "2"]),
    "lns warm-up": (Variant("lns", warmup=2), ["--residual-warmup-steps", "2"]),
    "post_ln warm-up": (Variant("post_ln", warmup=2), ["--residual-warmup-steps", "2"]),
    "sandwich_ln warm-up": (Variant("sandwich_ln", warmup=2), ["--residual-warmup-steps", "2"]),
}


def worker(_rank: int, name: str, layout: Layout, mutate=None, decay: float = 0.0) -> dict:
    if mutate is not None:
        mutate()
    variant, flags = VARIANTS[name]
    vectors = load_file(VECTORS)
    batch = ["--micro-batch-size", "1", "--global-batch-size", "2"]
    adam = ["--adam-eps", str(eps_of(name)), "--weight-decay", str(decay)]
    args = start_megatron([*MODEL_FLAGS, *shape_flags(SHAPE, 32), *batch, *layout.all_flags(), *flags, *adam])
    engine = Engine(args, layout, SHAPE, variant.scheme, start=START)
    engine.load(oracle_schemes.parameters(init_weights(vectors), variant, SHAPE))
    result = engine.forward_backward(vectors["tokens"][0], vectors["labels"][0])
    result["losses"] = engine.train(vectors["tokens"], vectors["labels"])
    result["params"] = engine.parts("data")
    return result


def differences(name: str, layout: Layout, mutate=None, decay: float = 0.0) -> dict[str, float]:
    """What the Megatron model is away from the oracle, as ``compare`` has it."""
    return against_the_oracle(run_ranks(layout.world, worker, name, layout, mutate, decay), name, layout, decay)


def against_the_oracle(results: list[dict], name: str, layout: Layout, decay: float = 0.0) -> dict[str, float]:
    """The same of what the workers returned."""
    variant, _ = VARIANTS[name]
    vectors = load_file(VECTORS)
    weights = oracle_schemes.parameters(init_weights(vectors), variant, SHAPE)
    right = oracle_schemes.run(
        weights, vectors["tokens"], vectors["labels"], variant, SHAPE, START, eps_of(name), decay
    )
    expected = {f"mha.init.{key}": value for key, value in weights.items()}
    expected |= {f"mha.x.{key}": right[key] for key in ("logits", "loss", "losses")}
    expected |= {f"mha.x.grad.{key}": value for key, value in right["grad"].items()}
    expected |= {f"mha.x.adamw3.{key}": value for key, value in right["params"].items()}
    return compare(results, layout, expected, "x")


def sign_of_the_exponent() -> None:
    """The mutant: DeepNorm's alpha is (2L)^(-1/4)."""
    from megatron_cod.schemes import post_norm

    post_norm.deepnorm_alpha = lambda layers: (2 * layers) ** -0.25


def alpha_of_32_layers() -> None:
    """The mutant: DeepNorm's alpha is that of 32 layers, whatever the model has."""
    from megatron_cod.schemes import post_norm

    post_norm.deepnorm_alpha = lambda layers: (2 * 32) ** 0.25


def counted_by_stage() -> None:
    """The mutant: Mix-LN's first blocks are counted on every stage."""
    from megatron_cod.schemes import design

    right = design.global_layer_number
    design.global_layer_number = lambda layer: (right(layer) - 1) % 4 + 1


def norm_of_the_sum() -> None:
    """The mutant: Sandwich-LN's second norm takes the residual in."""
    from megatron_cod.schemes.sandwich import SandwichJoin

    SandwichJoin.scaled = lambda self, branch: branch
    SandwichJoin.combined = lambda self, residual, branch: self.norm(residual + branch)


def warm_up_of_all_at_once() -> None:
    """The mutant: every block warms up as the first does."""
    from megatron_cod.schemes import design

    right = design.start_warmup
    design.start_warmup = lambda layer, _number, steps: right(layer, 1, steps)


MUTANTS = [
    ("deepnorm", ONE, sign_of_the_exponent),
    ("deepnorm", ONE, alpha_of_32_layers),
    ("mix_ln", FOUR, counted_by_stage),
    ("sandwich_ln", ONE, norm_of_the_sum),
    ("lns warm-up", ONE, warm_up_of_all_at_once),
]
