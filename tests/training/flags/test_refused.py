"""Flags that Megatron's parser takes and its code breaks on: one line at the start, in the dry run too."""

import re

import pytest

from megatron_cod.errors import UserError
from megatron_cod.rehearsal.launch import read_launch
from megatron_cod.training.flags.refused import REFUSED, check_refused
from tests.rehearsal.jobs import SMALL

EXAMPLES = (
    (["--checkpoint-activations"], "--recompute-activations is its successor"),
    (["--unset", "eval-interval"], "--eval-interval is missing"),
    (["--multiple-validation-sets"], "--multiple-validation-sets is not supported"),
    (["--skip-train", "--eval-iters", "0"], "--skip-train --eval-iters 0: there is nothing to do"),
    (["--lazy-mpu-init"], "--lazy-mpu-init is not supported"),
    (["--fake-process-group"], "--fake-process-group is not supported"),
    (["--seq-length", "1"], "--seq-length 1 is not supported"),
    (["--save-wgrads-interval", "2"], "need --save"),
    (["--pretrained-checkpoint", "nowhere"], "--pretrained-checkpoint nowhere holds no finished checkpoint"),
    (["--result-rejected-tracker-filename", "recipes"], "--result-rejected-tracker-filename recipes is a directory"),
    (["--init-method-xavier-uniform"], "--init-method-xavier-uniform is not supported"),
    (["--dataloader-type", "external"], "--dataloader-type external is not supported"),
    (["--unset", "vocab-size"], "--tokenizer-type NullTokenizer needs --vocab-size"),
    (["--wandb-project", "x"], "--wandb-project needs --wandb-exp-name"),
    (["--num-experts", "4", "--unset", "disable-bias-linear"], "--num-experts without --disable-bias-linear"),
    (["--num-experts", "2", "--moe-router-topk", "3"], "--moe-router-topk 3 is more than the --num-experts 2"),
    (
        ["--num-experts", "2", "--moe-apply-probs-on-input"],
        "--moe-apply-probs-on-input needs --moe-router-topk 1, found 2",
    ),
    (
        ["--num-experts", "2", "--moe-router-load-balancing-type", "sinkhorn", "--moe-aux-loss-coeff", "0.1"],
        "sinkhorn needs --moe-aux-loss-coeff 0: it balances",
    ),
    (
        ["--num-experts", "2", "--moe-router-load-balancing-type", "quantile_balancing", "--moe-router-fusion"],
        "quantile_balancing does not support --moe-router-fusion",
    ),
    (["--multi-latent-attention", "--cache-mla-latents"], "--cache-mla-latents is not supported"),
    (["--attention-backend", "local"], "--attention-backend local needs --spec local"),
    (["--exit-signal", "SIGKILL"], "SIGKILL and SIGSTOP cannot be caught"),
    (["--tokenizer-type", "NullMultimodalTokenizer"], "--tokenizer-type NullMultimodalTokenizer is of another program"),
    (["--rerun-mode", "report_stats"], "--rerun-mode report_stats is not supported"),
    (["--rl-profile"], "--perform-rl-step and --rl-profile are not supported"),
    (["--num-experts", "2", "--moe-layer-freq", "[0,1]"], "one number for each of the --num-layers 8"),
    (["--config-logger-dir", "x"], "--config-logger-dir is not supported"),
    (["--kv-channels", "9"], "--kv-channels 9 x --rotary-percent 1.0 is odd"),
    (["--te-precision-config-file", "nowhere"], "--te-precision-config-file nowhere does not exist"),
)


@pytest.mark.parametrize(("flags", "text"), EXAMPLES, ids=[" ".join(flags) for flags, _ in EXAMPLES])
def test_rejects_flags_that_break(flags, text, tmp_path):
    words = [*SMALL, *(str(tmp_path) if word == "SAVE" else word for word in flags)]
    with pytest.raises(UserError, match=re.escape(text)) as error:
        read_launch(words, 1)
    assert "\n" not in str(error.value)


def test_every_row_has_an_example():
    said = [text for _, text in EXAMPLES]
    unsaid = [row.line for row in REFUSED if not any(text.split("{")[0][:20] in row.line for text in said)]
    assert len(EXAMPLES) == len(REFUSED) and len(unsaid) <= 3, unsaid


def test_programs_that_do_not_train_make_no_checks_of_training():
    from megatron_cod.training.flags.parser import build_parser

    check_refused(build_parser().parse_args(["--multiple-validation-sets"]), trains=False)


@pytest.mark.slow
def test_trains_without_validation(tmp_path):
    """``--eval-iters 0`` needs no interval, which Megatron divides by."""
    from tests.distributed.launch import run_training_ranks

    ended = run_training_ranks(1, [*SMALL, "--unset", "eval-interval", "--eval-iters", "0", "--train-iters", "2"])[0]
    assert ended.code == 0, ended.output[-1000:]
