"""What the emulated runtime records of waits."""

from tests.distributed.launch import run_ranks


def waits_for_events(_rank: int) -> dict[str, int]:
    import fakecuda  # on the path of processes under the emulation only
    import torch

    fakecuda.begin_rank("numerics,report")
    tensor = torch.zeros(1 << 20, device="cuda")
    tensor.record_stream(torch.cuda.Stream())
    del tensor
    fakecuda.reset()
    torch.cuda.empty_cache()  # waits for the other stream, with the allocator's lock held
    event = torch.cuda.Event()
    event.record()
    event.synchronize()
    return fakecuda.full_report()


def test_waits_of_the_allocator_are_counted_without_their_lines():
    """Their lines would be read under Python's lock, and a thread that has it may wait for the allocator."""
    [found] = run_ranks(1, waits_for_events)
    assert found["sync:cudaEventSynchronize"] == 2
    lines = {name: number for name, number in found.items() if name.startswith("@sync cudaEventSynchronize")}
    assert len(lines) == 1 and "empty_cache" not in str(lines), lines
