"""The findings in words, and the figures of effective depth that they rest on. Thresholds are named where they are used."""

from typing import Any

REMOVAL = 0.01
"""A block counts as carrying when the loss rises by more than this share without it."""
IDENTITY = 0.1
"""A block is close to the identity below this |J - I| / |I|."""
ANGLE = 0.05
"""A block hardly turns the stream below this angular distance (last token), in units of pi."""
LENS = 0.10
"""The lens is close when its loss is within this share of the model's."""


def effective_depth(found: dict[str, Any]) -> dict[str, float]:
    """Counts out of L: blocks that carry, that turn the stream, that are far from the identity, that are useful."""
    depth = found["depth"]
    counts: dict[str, float] = {"blocks": depth}
    if "removal" in found:
        limit = REMOVAL * found["loss"]["mean"]
        counts["carrying"] = sum(one["mean"] > limit for one in found["removal"])
    if "angle, last token" in found:
        mean = found["angle, last token"]["mean"]
        counts["turning"] = sum(mean[point][point + 1] > ANGLE for point in range(depth))
    if "jacobian" in found:
        counts["far from the identity"] = sum(one["mean"] > IDENTITY for one in found["jacobian"])
    if "usefulness" in found:
        counts["useful"] = sum(found["usefulness"]["useful"])
    if "logit lens" in found:
        limit = (1 + LENS) * found["loss"]["mean"]
        after = (point for point, one in enumerate(found["logit lens"]) if one["mean"] <= limit)
        counts["lens close after"] = next(after, depth)
    return counts


def sentences(found: dict[str, Any]) -> list[str]:
    """The findings, one a line. Nothing is claimed beyond what was measured."""
    depth, half = found["depth"], found["depth"] // 2
    counts = effective_depth(found)
    lines = [
        f"{depth} blocks, loss {found['loss']['mean']:.4f} (perplexity {found['perplexity']:.2f}) "
        f"on {found['tokens']} tokens."
    ]
    if "removal" in found:
        first, second = _halves([one["mean"] for one in found["removal"]], half)
        lines.append(
            f"{counts['carrying']} of {depth} blocks raise the loss by more than {REMOVAL:.0%} when removed; the mean "
            f"rise is {first:.4f} nats in the first half and {second:.4f} in the second."
        )
    if "usefulness" in found:
        lines.append(
            f"{counts['useful']} of {depth} blocks are useful: the best linear map in their place raises the loss by "
            "more than 10%."
        )
    if "jacobian" in found:
        first, second = _halves([one["mean"] for one in found["jacobian"]], half)
        lines.append(
            f"{counts['far from the identity']} of {depth} blocks are further than {IDENTITY} from the identity "
            f"(|J - I| / |I|; mean {first:.3f} in the first half, {second:.3f} in the second)."
        )
    if "angle, last token" in found:
        lines.append(
            f"{counts['turning']} of {depth} blocks turn the stream of the last token by more than {ANGLE} of pi."
        )
    if "stream" in found:
        first_row, last_row = found["stream"][0], found["stream"][-1]
        lines.append(
            f"The variance of the stream goes from {first_row['variance_without_first']['mean']:.3g} at the embedding to "
            f"{last_row['variance_without_first']['mean']:.3g} after the last block, without the first token "
            f"(with it: {last_row['variance']['mean']:.3g})."
        )
        sink = max(row["largest_over_median"] for row in found["stream"])
        if sink > 1000:
            lines.append(f"Massive activations: the largest is {sink:,.0f} times the median.")
    if "logit lens" in found:
        lines.append(
            f"Read through the head, the stream is within 10% of the final loss after block {counts['lens close after']}."
        )
    return lines


def _halves(values: list[float], half: int) -> tuple[float, float]:
    return sum(values[:half]) / max(1, half), sum(values[half:]) / max(1, len(values) - half)
