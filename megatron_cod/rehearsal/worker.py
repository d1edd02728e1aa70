"""One rank of a job in one process: build its stage over a fake process group, take steps, report what was built.

Run as ``python -m megatron_cod.rehearsal.worker JOB.json REPORT.json``. What other ranks would send is arbitrary memory
here: the loss means nothing, and is not reported. What counts is what was built, and that the schedule went through.
"""

import json
import resource
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from megatron_cod.rehearsal.launch import as_process

# isort: split
import torch
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.training import pretrain
from megatron.training.argument_utils import pretrain_cfg_container_from_args
from megatron.training.arguments import validate_args
from megatron.training.global_vars import set_global_variables

from megatron_cod.adaptations import cpu, torch_only
from megatron_cod.args import MegatronArgs
from megatron_cod.depth_map import stage_layers
from megatron_cod.errors import Phase, UserError
from megatron_cod.launch.exit_codes import one_line_endings
from megatron_cod.model import model_config_from_args
from megatron_cod.pipeline import embedding_ranks, plan_pipeline, split_from_args
from megatron_cod.schemes.design import design_from_args
from megatron_cod.training.before_megatron import satisfy_make
from megatron_cod.training.data import batches
from megatron_cod.training.flags.batch_sizes import batch_sizes
from megatron_cod.training.flags.command_line import resolve_command_line
from megatron_cod.training.loop.odd_width_warm_up import widen_warm_up
from megatron_cod.training.start.prepare import as_megatron_parses


@dataclass(frozen=True)
class Job:
    """What to rehearse."""

    command_line: list[str]
    """What follows ``megatron_cod.training.pretrain``, as ``launch.read_launch`` has accepted it."""
    rank: int
    world_size: int
    steps: int
    mock_data: bool
    vocabulary: int
    """The padded vocabulary; mocked data needs no tokenizer then."""


@dataclass(frozen=True)
class BuiltChunk:
    """A model chunk as it was really built."""

    virtual_stage: int
    layers: list[int]
    factors: list[list[float | None]]
    """Per layer, the factor of each depth-scaled norm."""
    embedding: bool
    """Whether it reads tokens, not whether it holds a copy of the embedding."""
    loss: bool
    parameters: int


@dataclass(frozen=True)
class RankReport:
    """What a rank built and did."""

    rank: int
    pipeline_rank: int
    tensor_rank: int
    data_rank: int
    chunks: list[BuiltChunk]
    steps: int
    peak_bytes: int
    """Most memory of the process, host memory where there is no GPU."""


def _short(args: MegatronArgs, job: Job) -> None:
    """Turn the launch into a trial of some steps that reads no checkpoint and writes nothing."""
    args.fake_process_group = True
    args.train_iters, args.train_samples = job.steps, None
    if args.step_batch_size_schedule and args.global_batch_size is None:
        args.global_batch_size = batch_sizes(args).last
    args.step_batch_size_schedule = args.phase_transition_iterations = args.lr_wsd_decay_samples = None
    args.lr_decay_iters = args.lr_decay_samples = args.lr_warmup_fraction = args.rampup_batch_size = None
    args.lr_warmup_iters = args.lr_warmup_samples = 0
    args.lr_wsd_decay_iters = 1 if args.lr_decay_style == "WSD" else args.lr_wsd_decay_iters
    args.eval_iters, args.num_workers, args.log_interval = 0, 0, job.steps
    args.save = args.load = args.pretrained_checkpoint = args.tensorboard_dir = args.non_persistent_save_interval = None
    args.save_interval = args.exit_interval = args.exit_duration_in_mins = None
    args.async_save = args.use_checkpoint_args = False
    args.exit_signal_handler = False  # it asks all ranks, over backends that it knows
    args.do_train = True  # ranks without data learn by broadcast that there is some
    if job.mock_data:
        args.mock_data = True
        args.tokenizer_type, args.vocab_size, args.padded_vocab_size = (
            "NullTokenizer",
            job.vocabulary - 1,
            job.vocabulary,
        )
        args.data_path = args.train_data_path = args.valid_data_path = args.test_data_path = None
        args.data_args_path = args.per_split_data_args_path = None
        args.split = None


def _keep_in_range(args: MegatronArgs, job: Job) -> None:
    """A tensor-parallel rank but the first gets its batch by broadcast, so arbitrary memory here: make it token ids."""
    original = batches.get_batch
    limits = {"tokens": job.vocabulary, "position_ids": args.seq_length}

    def get_batch(*arguments: Any, **named: Any) -> batches.Batch:
        batch = original(*arguments, **named)
        for name, limit in (limits | {"labels": limits["tokens"]}).items():
            held = batch[name]
            if held is not None and parallel_state.get_tensor_model_parallel_rank():
                held.remainder_(limit)
        return batch

    batches.get_batch = get_batch


def _datasets(sample_counts: list[int], vp_stage: int | None = None) -> Any:
    """The datasets of this rank. Megatron lets only rank 0 index them and the others read that: so be rank 0 here."""
    real = torch.distributed.get_rank
    with mock.patch.object(torch.distributed, "get_rank", lambda group=None: real(group) if group is not None else 0):
        return batches.datasets_provider(sample_counts, vp_stage=vp_stage)


_datasets.is_distributed = True  # type: ignore[attr-defined]


def _give_shapes(args: MegatronArgs) -> None:
    """Set the shapes that stages send one another beside their tensors, where those are not Megatron's own [s, b, h].

    A scheme with n residual streams sends [s, n b, h]. Behind a stage that predicts K tokens ahead 1 + K sequences go
    on; UserError for that with virtual stages, where the shape depends on which of them asks.
    """
    chunks = plan_pipeline(split_from_args(args))
    streams = design_from_args(args).streams
    predicts_early = any(chunk.mtp and not chunk.loss for chunk in chunks)
    if streams == 1 and not predicts_early:
        return
    if predicts_early and args.virtual_pipeline_model_parallel_size:
        raise UserError(
            "multi-token prediction on a stage of its own with virtual stages: planned, but not run here yet"
        )
    length = args.seq_length // args.context_parallel_size
    length //= args.tensor_model_parallel_size if args.sequence_parallel else 1

    def shape(behind: int) -> list[int]:
        ahead = sum(len(chunk.mtp) for chunk in chunks[: behind + 1])
        return [length * (1 + ahead), args.micro_batch_size * streams, args.hidden_size]

    def shapes(self: Any, _send_next: Any, _send_prev: Any, recv_prev: bool, recv_next: bool) -> tuple[Any, Any]:
        rank = parallel_state.get_pipeline_model_parallel_rank()
        return shape(rank - 1) if recv_prev else [0, 0, 0], shape(rank) if recv_next else [0, 0, 0]

    P2PCommunicator._communicate_shapes = shapes


def _built(model: list[torch.nn.Module]) -> list[BuiltChunk]:
    """What the chunks of this rank really hold."""
    rank, found = parallel_state.get_pipeline_model_parallel_rank(), []
    for virtual_stage, chunk in enumerate(model):
        inner: Any = chunk
        while not hasattr(inner, "pre_process"):
            inner = inner.module
        held = stage_layers(chunk, rank, virtual_stage)
        found.append(
            BuiltChunk(
                virtual_stage=virtual_stage,
                layers=list(held.layers),
                factors=[list(factors) for factors in held.factors],
                embedding=bool(inner.pre_process),
                loss=bool(inner.post_process),
                parameters=sum(parameter.numel() for parameter in chunk.parameters()),
            )
        )
    return found


def _peak_bytes() -> int:
    if cpu.has_cuda():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rehearse(job: Job) -> RankReport:
    """Be that rank of the job, in this process. The process is used up by it: Megatron's globals stay set."""
    torch_only.install()
    with as_process(job.rank, job.world_size), tempfile.TemporaryDirectory() as cache:
        args = as_megatron_parses(resolve_command_line(job.command_line)[0], job.world_size)
        _short(args, job)
        args.data_cache_path = cache
        validate_args(args)
        set_global_variables(args)
        satisfy_make()
        model_config, _ = model_config_from_args(args)
        # The depth check gathers over the pipeline, which is not there; the plan takes its place.
        model_config.post_wrap_hooks.clear()
        chunks: list[BuiltChunk] = []

        def note(model: list[Any]) -> list[Any]:
            chunks.extend(_built(model))
            return model

        model_config.post_wrap_hooks.append(note)
        _keep_in_range(args, job)
        _give_shapes(args)
        cfg = pretrain_cfg_container_from_args(args, model_config)
        widen_warm_up(args, model_config)
        pretrain(
            cfg,
            _datasets,
            ModelType.encoder_or_decoder,
            batches.forward_step,
            get_embedding_ranks=lambda ranks: embedding_ranks(args, ranks),
        )
    return RankReport(
        rank=job.rank,
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        chunks=chunks,
        steps=args.consumed_train_samples // args.global_batch_size,
        peak_bytes=_peak_bytes(),
    )


def main() -> None:
    """Read the job, rehearse it, write the report."""
    job_file, report_file = sys.argv[1:]
    job = Job(**json.loads(Path(job_file).read_text()))
    with one_line_endings(lambda: Phase.SET_UP):
        report = rehearse(job)
    Path(report_file).write_text(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
