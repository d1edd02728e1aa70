"""Every flag of Megatron's, alone, for two steps at toy size: works, or one line at the start with exit code 2.

A traceback, a hang or an abort before the first step is a failure. The value is what the flag's type and choices give;
where Megatron's examples for GPT, Llama, Mixtral and DeepSeek give one, it is that.
"""

from argparse import Action

import pytest

from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.flags.ranges import flag_of
from megatron_cod.training.pretraining import TASK
from tests.distributed.launch import run_training_ranks
from tests.rehearsal.jobs import SMALL

EXPERTS = ["--num-experts", "4", "--moe-aux-loss-coeff", "1e-2"]
LATENT = ["--multi-latent-attention", "--kv-lora-rank", "8", "--qk-head-dim", "8", "--qk-pos-emb-head-dim", "8"]
EXAMPLE_SCRIPTS = {
    "GPT": "--unset rotary-base swiglu position-embedding-type --position-embedding-type learned_absolute --bf16 "
    "--weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.95 --init-method-std 0.006 --clip-grad 1.0 --lr 6.0e-5 "
    "--min-lr 6.0e-6 --lr-decay-style cosine --attention-backend auto --eval-interval 1000 --eval-iters 1 --split 949,50,1",
    "Llama": "--use-mcore-models --group-query-attention --num-query-groups 2 --kv-channels 8 --normalization RMSNorm "
    "--rotary-percent 1.0 --rotary-base 1000000 --no-load-optim --bf16 --grad-reduce-in-bf16 --use-distributed-optimizer "
    "--overlap-grad-reduce --overlap-param-gather --cross-entropy-loss-fusion --calculate-per-token-loss --manual-gc "
    "--empty-unused-memory-level 1 --distributed-timeout-minutes 60 --log-throughput --attention-softmax-in-fp32",
    "Mixtral": "--num-experts 4 --moe-router-topk 2 --moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2 "
    "--moe-token-dispatcher-type alltoall --overlap-param-gather --overlap-grad-reduce --use-distributed-optimizer --bf16 "
    "--no-position-embedding --disable-bias-linear --group-query-attention --num-query-groups 2 --no-masked-softmax-fusion",
    "DeepSeek": "--multi-latent-attention --q-lora-rank 8 --kv-lora-rank 8 --qk-head-dim 8 --qk-pos-emb-head-dim 8 "
    "--v-head-dim 8 --rotary-scaling-factor 40 --mscale 1.0 --mscale-all-dim 1.0 --num-experts 4 --moe-layer-freq "
    "([0]+[1]*7) --moe-ffn-hidden-size 16 --moe-shared-expert-intermediate-size 16 --moe-router-topk 2 "
    "--moe-router-score-function sigmoid --moe-router-enable-expert-bias --moe-router-bias-update-rate 1e-3 "
    "--moe-router-pre-softmax --moe-router-topk-scaling-factor 2.5 --moe-router-load-balancing-type seq_aux_loss "
    "--moe-aux-loss-coeff 1e-4 --mtp-num-layers 1 --mtp-loss-scaling-factor 0.1 --qk-layernorm --bf16",
}
VALUES = {"exit_signal": "SIGUSR1", "split": "90,5,5", "seq_length": "16", "hidden_size": "64", "kv_channels": "8"}
FEW = ("--window-size", "--log-progress", "--qk-layernorm")
"""In the fast part of the tests."""


def _words(action) -> list[str]:
    if action.nargs == 0:
        return []
    number = {int: "2", float: "0.5"}.get(action.type, "x")
    choice = next((one for one in action.choices or () if one != action.default), number)
    value = VALUES.get(action.dest, str(getattr(choice, "name", choice)))
    return [value] * (action.nargs if isinstance(action.nargs, int) else 1)


def _actions() -> dict[str, tuple[list[str], Action]]:
    """Every flag of Megatron's, with those that it needs to act."""
    ours = ("megatron_cod", "when something", "options")
    found = {}
    for group in build_parser(TASK)._action_groups:
        if group.title.startswith(ours):
            continue
        for action in group._group_actions:
            needs = EXPERTS if action.dest.startswith("moe_") else []
            needs = LATENT if group.title == "mla" else needs
            needs = ["--mtp-num-layers", "1"] if action.dest.startswith("mtp_") else needs
            found[flag_of(action)] = needs, action
    return found


ACTIONS = _actions()
FLAGS = {flag: [*needs, flag, *_words(action)] for flag, (needs, action) in ACTIONS.items()}
CHOICES = {
    f"{flag} {one}": [*needs, flag, str(getattr(one, "name", one))]
    for flag, (needs, action) in ACTIONS.items()
    for one in action.choices or ()
    if not isinstance(action.nargs, int)
}
"""Every value of a flag that has a list of them."""


def _tried(flags: list[str], tmp_path) -> None:
    words = [str(tmp_path / "x") if word == "x" else word for word in flags]
    shape = ["--num-layers", "8" if "--moe-layer-freq" in words else "2", "--train-iters", "2", "--log-interval", "1"]
    ended = run_training_ranks(1, [*SMALL, *shape, "--eval-iters", "0", *words], timeout=120)[0]
    errors = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert ended.code in (0, 2), ended.output[-1500:]
    assert "Traceback" not in ended.output and len(errors) == (ended.code == 2), ended.output[-1500:]


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.slow_except(*FEW)
def test_a_flag_alone_works_or_is_refused_in_one_line(name, tmp_path):
    _tried(FLAGS[name], tmp_path)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.slow
def test_every_choice_of_a_flag_works_or_is_refused_in_one_line(name, tmp_path):
    _tried(CHOICES[name], tmp_path)


@pytest.mark.parametrize("script", EXAMPLE_SCRIPTS)
@pytest.mark.slow
def test_the_flags_of_megatrons_examples_train(script, tmp_path):
    words = EXAMPLE_SCRIPTS[script].split()
    ended = run_training_ranks(1, [*SMALL, "--train-iters", "2", *words], timeout=120)[0]
    assert ended.code in (0, 2) and "Traceback" not in ended.output, ended.output[-1500:]
