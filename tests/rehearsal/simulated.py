"""A simulation of the pipeline written for tests alone, and the pipelines that they try."""

FORWARD, BACKWARD = 1, 2
"""Time units of a pass through one virtual stage."""


def simulate(stages: int, chunks: int, microbatches: int) -> tuple[int, list[int]]:
    """(time of a step, most passes in flight on each stage) of 1F1B, every stage doing the first pass it may.

    Dependencies only, no list from the code under test: a stage prefers a backward pass that is ready once it has its
    number of warm-up forwards in flight, else the next forward of its own order, and it starts when what it needs has
    arrived.
    """
    last = stages * chunks - 1
    order = [
        (first + index, chunk)
        for first in range(0, microbatches, stages)
        for chunk in range(chunks)
        for index in range(min(stages, microbatches - first))
    ]
    done: dict[tuple[str, int, int], int] = {}
    clock = [0] * stages
    forward, backward, peak = [0] * stages, [0] * stages, [0] * stages
    total = len(order)
    while min(backward) < total:
        moved = False
        for stage in range(stages):
            ahead = stages - 1 - stage
            warmup = min(total, ahead + 1 if chunks == 1 else 2 * ahead + (chunks - 1) * stages + 1)
            if backward[stage] == total:
                continue
            wants_backward = forward[stage] == total or forward[stage] - backward[stage] == warmup
            if wants_backward:
                microbatch, chunk = order[backward[stage]]
                depth = (chunks - 1 - chunk) * stages + stage
                needs = ("b", microbatch, depth + 1) if depth < last else ("f", microbatch, depth)
                key, cost = ("b", microbatch, depth), BACKWARD
            else:
                microbatch, chunk = order[forward[stage]]
                depth = chunk * stages + stage
                needs = ("f", microbatch, depth - 1)
                key, cost = ("f", microbatch, depth), FORWARD
            if needs not in done and not (key[0] == "f" and depth == 0):
                continue
            clock[stage] = done[key] = max(clock[stage], done.get(needs, 0)) + cost
            if wants_backward:
                backward[stage] += 1
            else:
                forward[stage] += 1
                peak[stage] = max(peak[stage], forward[stage] - backward[stage])
            moved = True
        assert moved, "the pipeline is stuck"
    return max(clock), peak


PIPELINES = [(1, 1, 4), (2, 1, 1), (2, 1, 8), (4, 1, 2), (4, 1, 4), (4, 1, 16), (8, 1, 32), (16, 1, 24)]
INTERLEAVED = [(2, 2, 2), (2, 2, 8), (4, 2, 4), (4, 2, 16), (4, 3, 8), (8, 2, 8), (8, 4, 32)]
