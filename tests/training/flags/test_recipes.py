"""Recipes: what they hold, how they become flags, and that every shipped one trains at toy size."""

import argparse
import math

import pytest
import yaml

from megatron_cod.adaptations import cpu
from megatron_cod.errors import UserError
from megatron_cod.training.flags.command_line import resolve_command_line
from megatron_cod.training.flags.parser import UsageError, add_arguments, build_parser
from megatron_cod.training.flags.recipe_files import load_recipe
from megatron_cod.training.flags.recipes import recipe_flags, resolved_yaml
from tests.conftest import ROOT
from tests.distributed.launch import run_training_ranks

RECIPES = sorted(
    path
    for path in (ROOT / "recipes").glob("*.yaml")
    if path.name != "llama_base.yaml"
    and not path.name.startswith("sft_")  # those: tests/training/fine_tuning/test_sft.py
)
# METHOD's table: layers, hidden, heads, ffn, lr, steps, warm-up (the authors' configurations).
TABLE = {
    "llama_60m": (8, 512, 8, 1376, 1e-3, 10_000, 1000),
    "llama_130m": (12, 768, 12, 2048, 1e-3, 20_000, 2000),
    "llama_250m": (24, 768, 16, 2560, 1e-3, 40_000, 4000),
    "llama_350m": (24, 1024, 16, 2736, 1e-3, 60_000, 6000),
    "llama_1b": (24, 2048, 32, 5461, 5e-4, 100_000, 1000),
    "llama_7b": (32, 4096, 32, 11008, None, None, None),
}


@pytest.fixture(scope="module")
def parser():
    return build_parser()


def test_all_recipes_are_there():
    assert {path.stem for path in RECIPES} == {*TABLE, "c4", "corpus", "debug", "debug_wsd"}


@pytest.mark.parametrize("name", TABLE)
def test_recipe_has_the_papers_figures(name, parser):
    args, _ = resolve_command_line(["--recipe", str(RECIPES[0].parent / f"{name}.yaml")])
    layers, hidden, heads, ffn, lr, steps, warmup = TABLE[name]
    assert (args.num_layers, args.hidden_size, args.num_attention_heads, args.ffn_hidden_size) == (
        layers,
        hidden,
        heads,
        ffn,
    )
    assert args.padded_vocab_size == 32000
    assert (args.normalization, args.layernorm_epsilon, args.swiglu) == ("RMSNorm", 1e-6, True)
    assert (args.init_method_std, args.norm_scheme) == (0.02, "lns")
    if lr is None:
        return
    assert (args.lr, args.train_iters, args.lr_warmup_iters) == (lr, steps, warmup)
    assert args.min_lr == pytest.approx(lr / 10)
    assert (args.seq_length, args.global_batch_size, args.lr_decay_style) == (256, 512, "cosine")
    assert (args.adam_beta1, args.adam_beta2, args.adam_eps, args.weight_decay, args.clip_grad) == (
        0.9,
        0.999,
        1e-8,
        0.0,
        0.0,
    )
    assert args.embedding_init_method_std == pytest.approx(math.sqrt(2 / 5), rel=1e-6)
    assert args.bf16


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.slow_except(
    "debug",
    "debug_wsd",
    "llama_1b",
    "llama_7b",
)
def test_every_recipe_trains_at_toy_size(path, text_data):
    flags = [
        *("--recipe", str(path), "--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "4"),
        *("--ffn-hidden-size", "64", "--seq-length", "32", "--micro-batch-size", "2", "--global-batch-size", "4"),
        *("--train-iters", "3", "--eval-iters", "1", "--log-interval", "1"),
        *("--tokenizer-type", "NullTokenizer", "--vocab-size", "257", "--padded-vocab-size", "264"),
        *("--train-data-path", str(text_data / "some_train_text_document")),
        *("--valid-data-path", str(text_data / "some_valid_text_document")),
    ]
    recipe = load_recipe(path)
    if "lr-warmup-iters" in recipe:
        flags += ["--lr-warmup-iters", "1"]
    if recipe["lr-decay-style"] == "WSD":
        flags += ["--lr-warmup-iters", "1", "--lr-wsd-decay-iters", "1"]
    ended = run_training_ranks(1, flags)[0]
    assert ended.code == 0, ended.output[-2000:]
    assert "step 3/3 | loss" in ended.output
    assert "norm factors 1.0000..0.7071" in ended.output


def write(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    return tmp_path / "r.yaml"


def test_values_become_flags(parser, tmp_path):
    recipe = load_recipe(
        write(
            tmp_path, "num_layers: 4\nlr: 1.0e-3\nswiglu: true\nbf16: false\nspec: null\ndata-path: [0.3, a, 0.7, b]\n"
        )
    )
    assert recipe_flags(recipe, parser) == [
        *("--num-layers=4", "--lr=0.001", "--swiglu", "--data-path", "0.3", "a", "0.7", "b"),
    ]
    assert "--swiglu" not in recipe_flags(recipe, parser, unset=["swiglu"])


def test_the_command_line_wins(tmp_path):
    path = write(tmp_path, "num-layers: 4\nlr: 1.0e-3\nnorm-scheme: pre_ln\n")
    args, _ = resolve_command_line(["--recipe", str(path), "--lr", "0.5", "--norm-scheme", "lns"])
    assert (args.num_layers, args.lr, args.norm_scheme) == (4, 0.5, "lns")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num-layer: 4\n", r"unknown recipe key 'num-layer'; did you mean num-layers\?"),
        ("norm-schem: lns\n", r"did you mean norm-scheme\?"),
        ("swiglu: 3\n", "is a switch"),
        ("- 4\n", "must hold 'argument-name: value' lines"),
        ("a: [1\n", "cannot be read"),
        ("lr: {a: 1}\n", "one value or a list"),
        ("base: r.yaml\n", "builds on itself"),
        ("base: gone.yaml\n", "does not exist; there are r.yaml"),
    ],
)
def test_rejects_bad_recipes(parser, tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        recipe_flags(load_recipe(write(tmp_path, text)), parser)


def test_rejects_unset_of_unknown_key(parser):
    with pytest.raises(ValueError, match="recipe has no such key"):
        recipe_flags({"lr": 1}, parser, unset=["swiglu"])


def test_resolved_arguments_reproduce_the_run(tmp_path, parser):
    flags = ["--recipe", str(RECIPES[0].parent / "debug.yaml"), "--lr", "0.25", "--no-rope-fusion"]
    args, resolved = resolve_command_line(flags)
    again = write(tmp_path, resolved)
    second, text = resolve_command_line(["--recipe", str(again)])
    assert text == resolved
    differing = {name for name in vars(args) if getattr(args, name) != getattr(second, name)}
    assert differing <= {"recipe", "init_policy"}
    assert yaml.safe_load(resolved)["init-policy"] == "normal"
    assert "lr" not in yaml.safe_load(resolved_yaml(parser.parse_args([]), parser, {}))


EXAMPLES = {
    "attention_backend": "unfused",
    "window_size": "(4,0)",
    "window_attn_skip_freq": "([1]*2+[0]*2)",
    "no_rope_freq": "([0]*2+[1]*2)",
    "exit_signal": "SIGUSR1",
    "moe_layer_freq": "([0]*1+[1]*3)",
    "linear_attention_freq": "([1]*3+[0]*1)",
    "cuda_graph_scope_deprecated": "attn",
    "cuda_graph_modules": "attn",
}
"""A value for every flag of Megatron's that it parses into something else than a number or a text."""


def test_values_that_megatron_parses_itself_reproduce_the_run(parser):
    ours = {action.dest for action in add_arguments(argparse.ArgumentParser())._actions}
    actions = {action.dest: action for action in parser._actions if action.type not in (None, int, float, str, bool)}
    assert actions.keys() - ours == EXAMPLES.keys(), "give an example"
    for name, text in EXAMPLES.items():
        args = parser.parse_args([actions[name].option_strings[0], text])
        again = recipe_flags(yaml.safe_load(resolved_yaml(args, parser, {})), parser)
        assert getattr(parser.parse_args(again), name) == getattr(args, name) != actions[name].default


@pytest.mark.slow
def test_every_switch_is_in_the_resolved_arguments(parser):
    """On and off, whatever its kind: read as a recipe they give the same run."""
    from megatron_cod.training.flags.recipes import _ONCE

    actions = [action for action in parser._actions if action.nargs == 0 and "help" not in action.dest]
    switches = [option for action in actions if action.dest not in _ONCE for option in action.option_strings]
    assert len(switches) > 300
    for switch in switches:
        args = parser.parse_args([switch])
        resolved = resolved_yaml(args, parser, {})
        again = parser.parse_args(recipe_flags(yaml.safe_load(resolved) or {}, parser))
        assert vars(args) == vars(again), switch


def test_false_turns_a_switch_off_that_has_a_no_form(parser):
    off = recipe_flags({"rl-skip-bos-token": False, "swiglu": False}, parser)
    assert off == ["--no-rl-skip-bos-token"]


def test_usage_errors_are_one_line(parser):
    with pytest.raises(UsageError, match="unrecognized arguments: --frobnicate"):
        parser.parse_args(["--frobnicate"])


MACHINE = {flag.removeprefix("--") for flag in cpu.DEFAULT_FLAGS if flag.startswith("--")}


@pytest.mark.parametrize("backend", [[], ["--backend", "torch"]], ids=["auto", "torch"])
def test_resolved_arguments_are_the_same_on_every_machine(monkeypatch, backend):
    """What the machine chooses is not in them, so that they are a recipe on a GPU too."""
    texts = []
    for gpu in (False, True):
        monkeypatch.setattr(cpu, "has_cuda", lambda gpu=gpu: gpu)
        texts.append(resolve_command_line(["--recipe", str(RECIPES[0].parent / "debug.yaml"), *backend])[1])
    assert texts[0] == texts[1]
    assert not MACHINE & set(yaml.safe_load(texts[0]))


def test_resolved_arguments_keep_requested_settings():
    flags = [
        "--recipe",
        str(RECIPES[0].parent / "debug.yaml"),
        "--transformer-impl",
        "local",
        "--use-cpu-initialization",
    ]
    resolved = yaml.safe_load(resolve_command_line(flags)[1])
    assert resolved["transformer-impl"] == "local" and resolved["use-cpu-initialization"] is True


def test_flags_of_cpu_processes_in_earlier_resolved_arguments_are_skipped(tmp_path, monkeypatch, capsys):
    old = dict.fromkeys(MACHINE, True) | {"transformer-impl": "local", "distributed-backend": "gloo", "num-layers": 3}
    path = write(tmp_path, yaml.safe_dump(old))
    monkeypatch.setattr(cpu, "has_cuda", lambda: True)
    args, resolved = resolve_command_line(["--recipe", str(path)])
    assert (args.distributed_backend, args.num_layers) == ("nccl", 3) and not args.use_cpu_initialization
    assert "the recipe is of a run on CPU processes" in capsys.readouterr().out
    assert not MACHINE & set(yaml.safe_load(resolved))
    path.write_text(yaml.safe_dump({"distributed-backend": "gloo", "num-layers": 3}))
    assert resolve_command_line(["--recipe", str(path)])[0].distributed_backend == "gloo"


@pytest.mark.parametrize("key", ["help", "help-megatron", "recipe", "unset"])
def test_rejects_flags_of_the_command_line_alone(key):
    with pytest.raises(UserError, match=f"recipe key '{key}' is a flag of the command line alone"):
        recipe_flags({key: True}, build_parser())


def test_rejects_a_list_without_values():
    with pytest.raises(UserError, match="recipe key 'normalization' needs a value"):
        recipe_flags({"normalization": []}, build_parser())


def test_prints_the_help_of_every_flag_of_megatron(capsys):
    """One of Megatron's own texts has a percent sign that argparse would take for its own."""
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["--help-megatron"])
    assert ended.value.code == 0
    assert "--moe-paged-stash-buffer-size-factor-cuda" in capsys.readouterr().out
