"""Drive the project's own model, batches and Megatron's own optimizer and train step inside one worker."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.distributed.mapping import Layout, pieces
from tests.oracle import Shape, Weights

MODEL_FLAGS = [
    *("--normalization", "RMSNorm", "--norm-epsilon", "1e-6", "--swiglu", "--disable-bias-linear"),
    *("--position-embedding-type", "rope", "--untie-embeddings-and-output-weights"),
    *("--attention-dropout", "0", "--hidden-dropout", "0", "--no-create-attention-mask-in-dataloader"),
    *("--tokenizer-type", "NullTokenizer", "--make-vocab-size-divisible-by", "1", "--mock-data"),
    *("--adam-beta1", "0.9", "--adam-beta2", "0.95", "--adam-eps", "1e-8", "--weight-decay", "0", "--clip-grad", "0"),
    *("--lr", "1e-2", "--lr-decay-style", "constant", "--train-iters", "3", "--eval-iters", "0"),
    *("--rerun-mode", "disabled", "--no-check-for-nan-in-loss-and-grad"),
]


def shape_flags(shape: Shape, seq_length: int) -> list[str]:
    return [
        *("--num-layers", str(shape.layers), "--hidden-size", str(shape.hidden)),
        *("--ffn-hidden-size", str(shape.ffn), "--num-attention-heads", str(shape.heads)),
        *("--seq-length", str(seq_length), "--max-position-embeddings", str(seq_length)),
        *("--vocab-size", str(shape.vocab), "--padded-vocab-size", str(shape.vocab)),
    ]


def start_megatron(flags: list[str]) -> Any:
    """Parse flags as the training entry does and initialise Megatron on this process; returns the arguments."""
    import megatron.training.training as loop
    from megatron.training.arguments import parse_and_validate_args

    from megatron_cod.adaptations import torch_only
    from megatron_cod.training.before_megatron import satisfy_make
    from megatron_cod.training.flags.defaults import default_flags
    from megatron_cod.training.flags.parser import add_arguments

    torch_only.install()
    sys.argv = ["test", *default_flags(flags)[0], *flags]
    args = parse_and_validate_args(extra_args_provider=add_arguments)
    satisfy_make()
    loop.initialize_megatron()
    args.iteration = args.consumed_train_samples = args.consumed_valid_samples = 0
    return args


class Engine:
    """A model chunk list with its optimizer, as Megatron's own set-up builds them."""

    def __init__(
        self, args: Any, layout: Layout, shape: Shape, scheme: str, init_policy: str | None = None, start: int = 0
    ) -> None:
        from megatron.core import mpu
        from megatron.core.enums import ModelType
        from megatron.core.process_groups_config import ProcessGroupCollection
        from megatron.core.utils import get_model_config
        from megatron.training.argument_utils import pretrain_cfg_container_from_args
        from megatron.training.training import setup_model_and_optimizer

        from megatron_cod.model import model_config_from_args
        from megatron_cod.schemes.parameter_groups import split_groups
        from megatron_cod.training.loop.group_rules import use_rules

        args.norm_scheme, args.init_policy, args.curr_iteration = scheme, init_policy, start
        self.args, self.layout, self.shape = args, layout, shape
        self.tp_rank = mpu.get_tensor_model_parallel_rank()
        self.pp_rank = mpu.get_pipeline_model_parallel_rank()
        self.dp_rank = mpu.get_data_parallel_rank()
        self.cp_rank = mpu.get_context_parallel_rank()
        self.last = mpu.is_pipeline_last_stage(ignore_virtual=True)
        model_config, self.init_line = model_config_from_args(args)
        rules = model_config.design.group_rules(args)
        if rules is not None:
            split_groups(args)
        self.model, self.optimizer, self.scheduler = setup_model_and_optimizer(
            ModelType.encoder_or_decoder,
            checkpointing_context={},
            cfg_container=pretrain_cfg_container_from_args(args, model_config),
            pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
        )
        if rules is not None:
            use_rules(self.scheduler, rules, args)
        self.config = get_model_config(self.model[0])
        # What megatron.training.train sets before its loop.
        from megatron.core.distributed import finalize_model_grads

        self.config.finalize_model_grads_func = finalize_model_grads
        self.config.grad_scale_func = self.optimizer.scale_loss

    def parameters(self) -> Iterator[tuple[int, str, torch.nn.Parameter]]:
        for chunk, module in enumerate(self.model):
            for name, parameter in module.named_parameters():
                yield chunk, name.removeprefix("module.").removeprefix("module."), parameter

    def load(self, weights: Weights) -> None:
        """Copy Hugging Face tensors into the local shards."""
        with torch.no_grad():
            for chunk, name, parameter in self.parameters():
                for _, rows, source, where in pieces(name, self.layout, self.shape, self.tp_rank, self.pp_rank, chunk):
                    parameter[rows].copy_(weights[source][where])
        self.optimizer.reload_model_params()

    def parts(self, attribute: str) -> list[tuple[str, tuple[slice, ...], Tensor]]:
        """Local shards of ``data`` or ``main_grad`` as pieces of Hugging Face tensors."""
        return [
            (target, where, getattr(parameter, attribute)[rows].detach().float().clone())
            for chunk, name, parameter in self.parameters()
            for _, rows, target, where in pieces(name, self.layout, self.shape, self.tp_rank, self.pp_rank, chunk)
        ]

    def iterator(self, tokens: Tensor, labels: Tensor) -> Any:
        """Micro-batches of one sequence for this rank, of every batch in [n, b, s]; one iterator a chunk under VPP."""

        def rows() -> Iterator[dict[str, Tensor]]:
            for batch, label in zip(tokens, labels, strict=True):
                mine = range(self.dp_rank, batch.shape[0], self.layout.dp)
                for row in mine:
                    yield {
                        "tokens": batch[row : row + 1],
                        "labels": label[row : row + 1],
                        "loss_mask": torch.ones(1, batch.shape[1]),
                        "position_ids": torch.arange(batch.shape[1])[None],
                    }

        return [rows() for _ in self.model] if self.layout.vp > 1 else rows()

    def pass_over(self, iterator: Any, step: Any, forward_only: bool = False) -> Any:
        """Megatron's schedule over one batch of micro-batches; what the last stage reports. Gradients: ``parts``."""
        from megatron.core.num_microbatches_calculator import get_num_microbatches
        from megatron.core.pipeline_parallel import get_forward_backward_func

        for chunk in self.model:
            chunk.zero_grad_buffer()
            chunk.force_all_reduce = True  # whole gradients on every rank, also under the distributed optimizer
        self.optimizer.zero_grad()
        reported = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iterator,
            model=self.model,
            num_microbatches=get_num_microbatches(),
            seq_length=self.args.seq_length,
            micro_batch_size=self.args.micro_batch_size,
            forward_only=forward_only,
            force_all_reduce=True,
        )
        for chunk in self.model:
            chunk.force_all_reduce = False
        return reported

    def forward_backward(self, tokens: Tensor, labels: Tensor, forward_only: bool = False) -> dict[str, Any]:
        """One batch [b, s]: this rank's logits [b, s, v/tp] and loss (last stage), and gradient pieces."""
        from megatron_cod.training.data.batches import forward_step

        logits: list[Tensor] = []
        factor = self.config.mup_output_mult if self.config.use_mup else 1.0  # Megatron's, on what its head returns
        handles = [
            module.register_forward_hook(lambda _m, _i, out: logits.append(out[0].detach().transpose(0, 1) * factor))
            for chunk in self.model
            for name, module in chunk.named_modules()
            if name.endswith("output_layer")
        ]
        reduced = self.pass_over(self.iterator(tokens[None], labels[None]), forward_step, forward_only)
        for handle in handles:
            handle.remove()
        result: dict[str, Any] = {"grad": self.parts("main_grad"), **self.place()}
        if self.last:
            result["logits"] = torch.cat(logits)
            result["loss"] = float(sum(x["lm loss"][0] for x in reduced) / sum(x["lm loss"][1] for x in reduced))
        return result

    def place(self) -> dict[str, int]:
        return {"tp_rank": self.tp_rank, "cp_rank": self.cp_rank, "dp_rank": self.dp_rank}

    def train(self, tokens: Tensor, labels: Tensor) -> list[float]:
        """Megatron's train_step over batches [n, b, s]; the reduced losses on the last stage, [] elsewhere."""
        from megatron.core.pipeline_parallel import get_forward_backward_func
        from megatron.training.training import train_step

        from megatron_cod.training.data.batches import forward_step

        iterator = self.iterator(tokens, labels)
        losses = []
        for step in range(len(tokens)):
            reported, *_ = train_step(
                forward_step,
                iterator,
                self.model,
                self.optimizer,
                self.scheduler,
                self.config,
                get_forward_backward_func(),
                iteration=step,
            )
            self.args.curr_iteration += 1
            if reported:
                losses.append(float(reported["lm loss"]))
        if self.args.overlap_param_gather:  # the last step's are gathered by the forward pass that does not come
            for chunk in self.model:
                chunk.start_param_sync(force_sync=True)
        return losses
