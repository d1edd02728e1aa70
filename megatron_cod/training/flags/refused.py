"""Flags that the parser of Megatron-Core 0.19.2 accepts and its code fails on later: one line each instead.

In ``tests/training/flags``, ``test_refused.py`` has an example of each row, and ``test_flag_sweep.py`` runs every flag of
Megatron's.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_cod.args import MegatronArgs
from megatron_cod.checkpoint.directory import TRACKER
from megatron_cod.errors import UserError


@dataclass(frozen=True)
class Refused:
    """A row: a combination, and the line for it, whose braces hold names of arguments."""

    when: Callable[[Any], object]
    line: str
    training: bool = False
    """Only where a program trains."""


def _patterns(args: MegatronArgs) -> list[list[int]]:
    return [one for one in (args.moe_layer_freq, args.no_rope_freq) if isinstance(one, list)]


def _numbers(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _balances(args: MegatronArgs, kind: str) -> bool:
    return kind in _numbers(args.moe_router_load_balancing_type)


def _is_nowhere(args: MegatronArgs) -> bool:
    """Whether the weights to begin with are missing; they are not needed where ``--load`` has a checkpoint."""
    places = [place for place in (args.load, args.pretrained_checkpoint) if place]
    return bool(args.pretrained_checkpoint) and not any((Path(place) / TRACKER).is_file() for place in places)


REFUSED = (
    Refused(
        lambda a: a.checkpoint_activations,
        "--checkpoint-activations is a flag of earlier versions of Megatron's: --recompute-activations is its successor",
    ),
    Refused(
        lambda a: a.eval_interval is None and a.eval_iters,
        "--eval-interval is missing: how many steps from one validation to the next; or give --eval-iters 0",
        training=True,
    ),
    Refused(
        lambda a: a.multiple_validation_sets,
        "--multiple-validation-sets is not supported: Megatron-Core 0.19.2 fails in the first validation; "
        "megatron_cod.training.evaluate takes several sets",
        training=True,
    ),
    Refused(
        lambda a: a.skip_train and not a.eval_iters,
        "--skip-train --eval-iters 0: there is nothing to do",
        training=True,
    ),
    Refused(
        lambda a: a.lazy_mpu_init,
        "--lazy-mpu-init is not supported: Megatron-Core 0.19.2 then asks for process groups that nobody makes",
    ),
    Refused(
        lambda a: a.fake_process_group,
        "--fake-process-group is not supported: no rank would hear of another; megatron-cod rehearse builds one rank alone",
    ),
    Refused(
        lambda a: a.seq_length == 1,
        "--seq-length 1 is not supported: Megatron-Core 0.19.2 cuts samples of one token forever",
    ),
    Refused(
        lambda a: (
            not a.save
            and (
                a.save_params_interval
                or a.save_wgrads_interval
                or a.save_dgrads_interval
                or a.save_activations_interval
                or a.save_tokens_per_expert_interval
            )
        ),
        "--save-params-interval, --save-wgrads-interval, --save-dgrads-interval, --save-activations-interval and "
        "--save-tokens-per-expert-interval need --save, where to",
        training=True,
    ),
    Refused(
        lambda a: _is_nowhere(a),
        "--pretrained-checkpoint {pretrained_checkpoint} holds no finished checkpoint",
    ),
    Refused(
        lambda a: a.result_rejected_tracker_filename and Path(a.result_rejected_tracker_filename).is_dir(),
        "--result-rejected-tracker-filename {result_rejected_tracker_filename} is a directory",
    ),
    Refused(
        lambda a: a.init_method_xavier_uniform,
        "--init-method-xavier-uniform is not supported: Megatron-Core 0.19.2 hands it to a setting that its model does not "
        "have; --init-method-std and --init-policy choose the initialisation",
    ),
    Refused(
        lambda a: a.dataloader_type == "external",
        "--dataloader-type external is not supported: there is no loader of your own to call here; give single or cyclic",
    ),
    Refused(
        lambda a: a.tokenizer_type == "NullTokenizer" and not a.vocab_size,
        "--tokenizer-type NullTokenizer needs --vocab-size: ids have no words here, so nothing else has their number",
    ),
    Refused(
        lambda a: a.wandb_project and not a.wandb_exp_name,
        "--wandb-project needs --wandb-exp-name, the run's name there",
        training=True,
    ),
    Refused(
        lambda a: a.num_experts and a.add_bias_linear and a.transformer_impl == "local",
        "--num-experts without --disable-bias-linear: Megatron-Core 0.19.2 fails in the first step of experts with biases "
        "over torch's layers; give --disable-bias-linear",
    ),
    Refused(
        lambda a: a.num_experts and a.moe_router_topk > a.num_experts,
        "--moe-router-topk {moe_router_topk} is more than the --num-experts {num_experts}",
    ),
    Refused(
        lambda a: a.moe_apply_probs_on_input and a.num_experts and a.moe_router_topk != 1,
        "--moe-apply-probs-on-input needs --moe-router-topk 1, found {moe_router_topk}",
    ),
    Refused(
        lambda a: a.num_experts and _balances(a, "sinkhorn") and any(_numbers(a.moe_aux_loss_coeff)),
        "--moe-router-load-balancing-type sinkhorn needs --moe-aux-loss-coeff 0: it balances the experts by itself",
    ),
    Refused(
        lambda a: (
            a.num_experts
            and _balances(a, "quantile_balancing")
            and (a.moe_router_fusion or a.moe_router_num_groups or a.moe_router_group_topk)
        ),
        "--moe-router-load-balancing-type quantile_balancing does not support --moe-router-fusion, "
        "--moe-router-num-groups and --moe-router-group-topk",
    ),
    Refused(
        lambda a: a.num_layers and any(len(one) != a.num_layers for one in _patterns(a)),
        "--moe-layer-freq and --no-rope-freq, where they are lists, must have one number for each of the --num-layers "
        "{num_layers}",
    ),
    Refused(
        lambda a: a.multi_latent_attention and a.cache_mla_latents,
        "--cache-mla-latents is not supported: it is for inference, and Megatron-Core 0.19.2 refuses it in the first step",
        training=True,
    ),
    Refused(
        lambda a: a.attention_backend.name == "local" and (a.spec or [""])[0] != "local",
        "--attention-backend local needs --spec local; --backend torch has an attention of its own",
    ),
    Refused(
        lambda a: a.rerun_mode == "report_stats",
        "--rerun-mode report_stats is not supported: Megatron-Core 0.19.2 takes the value and has no such mode",
        training=True,
    ),
    Refused(
        lambda a: "Multimodal" in (a.tokenizer_type or ""),
        "--tokenizer-type {tokenizer_type} is of another program of Megatron's",
    ),
    Refused(
        lambda a: a.exit_signal in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD),
        "--exit-signal {exit_signal!s} is not supported: SIGKILL and SIGSTOP cannot be caught, SIGCHLD arrives whenever "
        "a helper process ends",
    ),
    Refused(
        lambda a: a.perform_rl_step or a.rl_profile,
        "--perform-rl-step and --rl-profile are not supported: reinforcement learning is another program of Megatron's",
    ),
    Refused(
        lambda a: a.config_logger_dir,
        "--config-logger-dir is not supported: Megatron-Core 0.19.2 fails to write the configuration, which holds process "
        "groups; SAVE/resolved_args.yaml and --dry-run say what runs",
    ),
    Refused(
        lambda a: a.position_embedding_type == "rope" and a.kv_channels and int(a.kv_channels * a.rotary_percent) % 2,
        "--kv-channels {kv_channels} x --rotary-percent {rotary_percent} is odd: rope turns pairs of channels",
    ),
    Refused(
        lambda a: a.te_precision_config_file and not Path(a.te_precision_config_file).is_file(),
        "--te-precision-config-file {te_precision_config_file} does not exist",
    ),
)


def check_refused(args: MegatronArgs, trains: bool) -> None:
    """UserError for the first row that fits. args: the plain parse."""
    for row in REFUSED:
        if (trains or not row.training) and row.when(args):
            raise UserError(row.line.format_map(vars(args)))
