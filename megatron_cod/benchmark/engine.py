"""Megatron models in one process, each with its own optimizer, stepped by Megatron's own ``train_step``."""

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import megatron.training.training as loop
import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.rerun_state_machine import RerunDataIterator
from megatron.core.transformer.transformer_layer import BaseTransformerLayer
from megatron.core.utils import get_model_config
from torch import Tensor

from megatron_cod.args import MegatronArgs
from megatron_cod.benchmark import activation_scaling
from megatron_cod.benchmark.timing import Lap
from megatron_cod.comparison.arms import parse_arm
from megatron_cod.errors import UserError
from megatron_cod.launch.single_process import launch_alone
from megatron_cod.model import model_config_from_args
from megatron_cod.schemes.depth import global_layer_number
from megatron_cod.training.data.batches import forward_step
from megatron_cod.training.flags.command_line import resolve_command_line
from megatron_cod.training.flags.packages import torch_has_the_norms
from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.start.checks import Need
from megatron_cod.training.start.loading import MODEL_ALONE, initialize, set_up
from megatron_cod.training.start.prepare import prepare

Microbatch = dict[str, Tensor]


# Megatron prints 800 lines before its first step; they belong to training, not to a table.
logging.getLogger("megatron").setLevel(logging.ERROR)


def _without_tokenizer(command_line: Sequence[str]) -> list[str]:
    """Flags for tokens that are drawn at random: where no tokenizer is given, its size is that of the vocabulary."""
    with redirect_stdout(io.StringIO()):
        raw, _ = resolve_command_line(command_line)
    size = raw.vocab_size or raw.padded_vocab_size
    if raw.tokenizer_model or not size:
        return []
    return ["--tokenizer-type", "NullTokenizer", "--vocab-size", str(size)]


def start_megatron(command_line: Sequence[str], threads: int) -> Any:
    """Initialise Megatron on this one process from a recipe and flags; returns the arguments.

    Megatron's own log is dropped. Raises UserError for what it refuses.
    """
    launch_alone()
    torch.set_num_threads(threads)
    command_line = [*command_line, *_without_tokenizer(command_line)]
    start = prepare(command_line, MODEL_ALONE, 1, frozenset({Need.MACHINE, Need.PROCESSES}), quiet=True)
    args = start.args
    if args.world_size != 1 or args.data_parallel_size != 1:
        raise UserError("the benchmark is one process: leave the parallel sizes at 1")
    with redirect_stdout(io.StringIO()):
        initialize()
    args.iteration = args.consumed_train_samples = args.consumed_valid_samples = 0
    return args


@contextmanager
def _arguments_of(args: MegatronArgs, arm: str) -> Iterator[None]:
    """Set the arm's flags in the arguments, and set them back afterwards."""
    flags, parser = parse_arm(arm).flags, build_parser()
    asked = parser.parse_args(list(flags))
    given = {action.dest for action in parser._actions if {*action.option_strings} & {*flags}}
    before = {name: getattr(args, name) for name in given}
    for name in given:
        setattr(args, name, getattr(asked, name))
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)


class Engine:
    """One model under one scheme with Megatron's DDP wrapper, optimizer and learning rate schedule."""

    def __init__(self, args: MegatronArgs, arm: str, backend: str | None = None) -> None:
        """arm: a scheme with its options, as ``comparison.arms`` reads it. backend: of ``backends.choice.BACKENDS``; None
        keeps that of the arguments. All engines share Megatron's arguments; an arm's flags are in them while it is built.
        """
        if backend is not None:
            args.backend = backend
            args.transformer_impl = "transformer_engine" if backend == "transformer_engine" else "local"
            args.no_persist_layer_norm = torch_has_the_norms(args.transformer_impl, backend, args.normalization)
        self.args = args
        self.arm = arm
        with redirect_stdout(io.StringIO()), activation_scaling.registered(), _arguments_of(args, arm):
            model_config, _ = model_config_from_args(args)
            self.model, self.optimizer, self.scheduler = set_up(args, model_config)
        self.config = get_model_config(self.model[0])
        # What megatron.training.train sets before its loop.
        self.config.finalize_model_grads_func = finalize_model_grads
        self.config.grad_scale_func = self.optimizer.scale_loss
        for chunk in self.model:
            chunk.train()
        self.forward_step: Callable[..., Any] = forward_step
        self._seconds_in_optimizer = 0.0
        self._inner_step = self.optimizer.step

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Parameters under the names they have in Megatron's GPTModel."""
        for name, parameter in self.model[0].named_parameters():
            yield name.removeprefix("module.").removeprefix("module."), parameter

    def forward_backward(self, batch: Microbatch) -> None:
        """Loss and gradients of one micro-batch, and nothing of the optimizer."""
        losses = self.model[0](batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
        losses.float().mean().backward()

    def mark_layers(self) -> None:
        """NVTX ranges "SCHEME layer L" around every layer's forward, for Nsight Systems."""
        for module in self.model[0].modules():
            if isinstance(module, BaseTransformerLayer):
                name = f"{self.arm} layer {global_layer_number(module)}"
                module.register_forward_pre_hook(lambda *_, name=name: torch.cuda.nvtx.range_push(name))
                module.register_forward_hook(lambda *_: torch.cuda.nvtx.range_pop())

    def logits(self, batch: Microbatch) -> Tensor:
        """Logits [b, s, v] of one micro-batch, without gradient."""
        with torch.no_grad():
            return self.model[0](batch["tokens"], batch["position_ids"], None)

    def step(self, batches: Sequence[Microbatch], clock: Callable[[], float]) -> Lap:
        """One train_step over the micro-batches of a global batch. The loss is a mean over tokens."""

        def timed_step() -> Any:
            start = clock()
            result = self._inner_step()
            torch.cuda.synchronize()
            self._seconds_in_optimizer = clock() - start
            return result

        self.optimizer.step = timed_step
        torch.cuda.synchronize()
        start = clock()
        reported, *_ = loop.train_step(
            self.forward_step,
            RerunDataIterator(iter(batches)),  # as train() does: the rerun check is part of a real step
            self.model,
            self.optimizer,
            self.scheduler,
            self.config,
            get_forward_backward_func(),
            iteration=0,
        )
        torch.cuda.synchronize()
        return Lap(clock() - start, self._seconds_in_optimizer, float(reported["lm loss"]))


def random_batches(args: MegatronArgs, count: int) -> list[list[Microbatch]]:
    """``count`` global batches of random tokens: micro-batches of [b, s], labels being the tokens that follow."""
    generator = torch.Generator().manual_seed(args.seed)
    shape = (args.micro_batch_size, args.seq_length)
    result = []
    for _ in range(count):
        batch = []
        for _ in range(get_num_microbatches()):
            text = torch.randint(args.vocab_size, (shape[0], shape[1] + 1), generator=generator)
            micro = {
                "tokens": text[:, :-1].contiguous(),
                "labels": text[:, 1:].contiguous(),
                "loss_mask": torch.ones(shape),
                "position_ids": torch.arange(shape[1]).expand(shape),
            }
            batch.append({name: tensor.to(torch.cuda.current_device()) for name, tensor in micro.items()})
        result.append(batch)
    return result
