"""Context parallelism on emulated devices: the losses of one of them, over NCCL."""

from itertools import product
from pathlib import Path

import pytest
import torch

from tests.cuda.runs import DEBUG, Run, train
from tests.distributed.launch import run_ranks

SHORT = (*DEBUG, "--no-rope-fusion", "--hidden-size", "64", "--ffn-hidden-size", "128")
GQA = ("--group-query-attention", "--num-query-groups", "2")
CP2 = ("--context-parallel-size", "2")
TP2 = ("--tensor-model-parallel-size", "2", "--sequence-parallel")
PP2 = ("--pipeline-model-parallel-size", "2")


def chunk(device: str, dtype: torch.dtype, groups: int, keys: int) -> list[torch.Tensor]:
    """Attention of 8 queries that end with the keys, and the gradients of both, keys and values within a larger tensor."""
    from megatron_cod.backends.torch_context_parallel import _attend

    draw = torch.Generator().manual_seed(keys + groups)
    query = torch.randn(8, 2, 4, 16, generator=draw).to(device, dtype).requires_grad_()
    both = torch.randn(2 * keys, 2, groups, 32, generator=draw).to(device, dtype).requires_grad_()
    key, value = both[:keys].split([16, 16], -1)
    found = _attend(query, key, value, None, True, None)
    found.backward(torch.randn(found.shape, generator=draw).to(device, dtype))
    return [tensor.detach().float().cpu() for tensor in (found, query.grad, both.grad)]


def kernels(_rank: int, report: str) -> dict[torch.dtype, float]:
    """Largest difference of a dtype's kernel on the device from fp32 on the CPU."""
    import fakecuda

    fakecuda.begin_rank("numerics,report", report)
    largest = dict.fromkeys((torch.float32, torch.bfloat16), 0.0)
    for dtype, groups, keys in product(largest, (4, 2, 1), (8, 16, 40)):
        pairs = zip(chunk("cuda", dtype, groups, keys), chunk("cpu", torch.float32, groups, keys), strict=True)
        largest[dtype] = max(largest[dtype], *(float((mine - theirs).abs().max()) for mine, theirs in pairs))
    return largest


@pytest.mark.slow
def test_a_chunk_attends_to_all_before_it(tmp_path):
    """The flash kernel in bf16, the memory-efficient one in fp32; grouped queries too."""
    found = run_ranks(1, kernels, str(tmp_path / "report"))[0]
    assert found[torch.float32] <= 2e-6 and found[torch.bfloat16] <= 5e-2, found


def collectives(run: Run, kind: str) -> int:
    return sum(number for name, number in run.reports[0].items() if name.startswith(f"nccl:{kind}"))


def furthest(run: Run, other: Run) -> float:
    """The progress line has four decimals."""
    assert run.losses and len(run.losses) == len(other.losses)
    return max(abs(a - b) for a, b in zip(run.losses, other.losses, strict=True))


def test_losses_are_those_of_one_device(tmp_path):
    """Grouped queries in fp32: torch's attention with a mask, or its memory-efficient kernel."""
    flags = [*SHORT, *GQA]
    one, two = train(1, tmp_path / "1", *flags).succeeded(), train(2, tmp_path / "2", *flags, *CP2).succeeded()
    assert furthest(two, one) <= 2e-4
    assert "gathers keys and values over 2 ranks" in two.console
    assert not [name for report in two.reports for name in report if name.startswith("!not computed")]
    # One collective each way for keys and values: 4 layers, 2 micro-batches, 4 steps; Megatron has others of its own.
    extra = {kind: collectives(two, kind) - collectives(one, kind) for kind in ("AllGather", "ReduceScatter")}
    assert all(number >= 32 for number in extra.values()), (extra, two.reports[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "tolerance"), [((), 2e-4), (("--bf16",), 2e-2)], ids=["memory-efficient", "flash"]
)
def test_every_kernel_equals_one_device(tmp_path, precision, tolerance):
    """One head a group; flash attention is bf16's."""
    flags = [*SHORT, *precision]
    one, two = train(1, tmp_path / "1", *flags).succeeded(), train(2, tmp_path / "2", *flags, *CP2).succeeded()
    assert furthest(two, one) <= tolerance
    assert not [name for report in two.reports for name in report if name.startswith("!not computed")]
    used = {name for name in two.reports[0] if "flash" in name.lower() or "fmha" in name.lower()}
    assert used, sorted(two.reports[0])


def saved(folder: Path, *flags: str) -> Run:
    """A run of one device that saves after two of four steps."""
    return train(1, folder / "emulation", *flags, "--save", str(folder / "run"), "--save-interval", "2").succeeded()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "layout"),
    [(8, (*CP2, *TP2, *PP2)), (4, ("--context-parallel-size", "4")), (4, (*CP2, "--use-distributed-optimizer"))],
    ids=["tp2 cp2 pp2", "cp4", "cp2 dp2"],
)
def test_layouts_resume_from_one_device(tmp_path, world, layout):
    flags = [*SHORT, "--micro-batch-size", "1", *(f for f in layout if f == "--use-distributed-optimizer")]
    one = saved(tmp_path, *flags)
    on = [*flags, *layout, "--load", str(tmp_path / "run"), "--ckpt-step", "2"]
    found = train(world, tmp_path / "on", *on, timeout=400).succeeded()
    assert len(found.losses) == 2
    assert max(abs(a - b) for a, b in zip(found.losses, one.losses[2:], strict=True)) <= 2e-4


def test_rejects_unsupported_flags(tmp_path):
    run = train(2, tmp_path, *SHORT, *CP2, "--attention-dropout", "0.1", mode="small,report")
    assert run.refused("--attention-dropout > 0", "--context-parallel-size")
