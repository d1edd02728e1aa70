"""Each depth metric against a direct computation, and on models whose answer is known."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from megatron_cod.analysis.depth import angles, block_removal, jacobian
from megatron_cod.analysis.depth.angles import AngularDistance
from megatron_cod.analysis.depth.estimate import estimate
from megatron_cod.analysis.depth.jacobian import distance, squared_distances
from megatron_cod.analysis.depth.stream import StreamStatistics
from tests.analysis.depth.toys import H, Linear, Mlp, Toy, everything, mlps, tokens, traced


def loss_of(logits, text):
    flat = F.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten(), reduction="none")
    return flat.view(text.shape[0], -1).mean(1)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_trace_is_the_model(batch_first):
    toy, text = Toy(mlps(4), batch_first, factor=0.7), tokens()
    model = traced(toy)
    trace = model.trace(text)
    assert torch.equal(trace.logits, toy(text))
    assert len(trace.streams) == 5 and trace.streams[0].shape == (3, 12, H)
    assert torch.allclose(model.through(trace, trace.streams[1], [2, 3, 4]), trace.streams[4], atol=1e-6)
    assert torch.allclose(model.head(trace, trace.streams[4]), trace.logits, atol=1e-6)
    assert torch.equal(toy(text), trace.logits)  # the model is what it was
    assert torch.allclose(model.losses(trace), loss_of(toy(text), text), atol=1e-6)


def test_traces_blocks_that_return_tuples_and_take_keywords():
    toy = Toy([Linear(torch.eye(H) * 0.1, in_tuple=True), Linear(torch.eye(H) * 0.2, in_tuple=True)])
    model, text = traced(toy), tokens()
    trace = model.trace(text)
    assert torch.allclose(model.head(trace, trace.streams[2]), trace.logits, atol=1e-6)
    assert torch.allclose(trace.streams[2], toy.embed[text] * 1.1 * 1.2, atol=1e-6)


def test_blocks_in_another_order_are_refused():
    toy = Toy(mlps(3))
    from megatron_cod.analysis.depth.traced import TracedModel

    with pytest.raises(ValueError, match="not once each from 1 to 3"):
        TracedModel(toy, [toy.blocks[1], toy.blocks[0], toy.blocks[2]]).trace(tokens())


def test_stream_statistics_equal_their_definitions():
    toy, text = Toy(mlps(3)), tokens()
    trace = traced(toy).trace(text)
    statistics = StreamStatistics()
    statistics.add(trace)
    for after, row in enumerate(statistics.rows()):
        stream = trace.streams[after].double()
        variance = stream.var(-1, unbiased=False)
        assert row.variance.mean == pytest.approx(float(variance.mean()), rel=1e-5)
        assert row.variance.error == pytest.approx(float(variance.mean(1).std() / math.sqrt(3)), rel=1e-4)
        assert row.variance_without_first.mean == pytest.approx(float(variance[:, 1:].mean()), rel=1e-5)
        assert row.largest == pytest.approx(float(stream.abs().max()), rel=1e-6)


def test_statistics_without_the_first_token_exclude_a_massive_one():
    toy, text = Toy([Linear(torch.zeros(H, H))]), tokens()
    with torch.no_grad():
        toy.embed[0, 3] = 1e4
    text[:, 1:] = text[:, 1:].clamp(min=1)
    text[:, 0] = 0
    row = everything(toy, text)["stream"][1]
    assert row["variance"]["mean"] > 1e4 * row["variance_without_first"]["mean"]
    assert row["median_variance"] < 10
    assert row["largest_over_median"] > 1000 > 100 > row["largest_over_median_without_first"]


def test_known_growth_of_the_variance():
    """Blocks that multiply the stream by 1.5: the variance grows by 2.25 a block."""
    rows = everything(Toy([Linear(0.5 * torch.eye(H)) for _ in range(4)]))["stream"]
    values = [row["variance"]["mean"] for row in rows]
    assert [b / a for a, b in pairwise(values)] == pytest.approx([2.25] * 4, rel=1e-5)


def rotation(angle: float) -> torch.Tensor:
    """x + W x is x turned by ``angle`` in every pair of channels."""
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return torch.block_diag(*[turn] * (H // 2)) - torch.eye(H)


def test_angular_distance_of_rotations():
    """Each block turns the stream by 0.3 pi: d(l, n) is 0.3 n, folded back at 1."""
    found = everything(Toy([Linear(rotation(0.3 * math.pi)) for _ in range(4)]))
    for which in ("last token", "token mean"):
        mean = torch.tensor(found[f"angle, {which}"]["mean"])
        for start in range(5):
            for n in range(5 - start):
                expected = min(0.3 * n, 2 - 0.3 * n)
                assert float(mean[start, start + n]) == pytest.approx(expected, abs=1e-6)


def test_angular_distance_directly_and_its_error():
    trace = traced(Toy(mlps(3))).trace(tokens(4, 300))  # more tokens than are held at a time
    metric = AngularDistance()
    metric.add(trace)
    a, b = trace.streams[1].double(), trace.streams[3].double()
    direct = torch.acos(F.cosine_similarity(a, b, dim=-1)) / math.pi  # [b, s]
    mean, error = metric.distance("token mean")
    assert float(mean[1, 3]) == pytest.approx(float(direct.mean()), abs=1e-9)
    assert float(error[1, 3]) == pytest.approx(float(direct.mean(1).std() / 2), rel=1e-6)
    mean, error = metric.distance("last token")
    assert float(mean[1, 3]) == pytest.approx(float(direct[:, -1].mean()), abs=1e-9)


def test_cosines_are_neither_clipped_nor_in_single_precision(monkeypatch):
    """Streams 1e-5 apart: fp32 would call them the same."""
    x = torch.randn(1, 1, H).expand(1, 2, H).clone()
    x[0, 1, 0] += 1e-5 * x.norm()
    assert 1e-6 < float(angles.angular_distances(x)[0, 0, 1]) < 1e-5


def test_removal_permutation_and_causal_score_directly():
    toy, text = Toy(mlps(4)), tokens()
    found = everything(toy, text)
    blocks = list(toy.blocks)

    def run(order):
        toy_ = Toy([blocks[i] for i in order])
        toy_.embed, toy_.head = toy.embed, toy.head
        return loss_of(toy_(text), text)

    whole = run(range(4))
    for number in range(4):
        rise = run([i for i in range(4) if i != number]) - whole
        assert found["removal"][number]["mean"] == pytest.approx(float(rise.mean()), abs=1e-5)
        assert found["removal"][number]["error"] == pytest.approx(float(rise.std() / math.sqrt(3)), abs=1e-5)
    for number in range(3):
        order = list(range(4))
        order[number], order[number + 1] = order[number + 1], order[number]
        assert found["permutation"][number]["mean"] == pytest.approx(float((run(order) - whole).mean()), abs=1e-5)
    trace = traced(toy).trace(text)
    after_first = toy.blocks[1](trace.streams[0]) - trace.streams[0]
    usual = trace.streams[2] - trace.streams[1]
    expected = ((after_first - usual).norm(dim=-1) / usual.norm(dim=-1)).mean()
    assert float(block_removal.causal_effects(traced(toy), trace, 1)[0]) == pytest.approx(float(expected), rel=1e-4)


def test_a_depth_scaled_block_keeps_its_index():
    """Blocks of factor l^-1/2: without block 2 the third still has 3^-1/2."""
    toy, text = Toy([*mlps(3)]), tokens()
    for number, block in enumerate(toy.blocks, 1):
        block.b.data *= number**-0.5
    kept = Toy([toy.blocks[0], toy.blocks[2]])
    kept.embed, kept.head = toy.embed, toy.head
    rise = loss_of(kept(text), text) - loss_of(toy(text), text)
    assert everything(toy, text)["removal"][1]["mean"] == pytest.approx(float(rise.mean()), abs=1e-5)


def test_exact_identities_are_reported_and_no_other_block():
    toy = Toy([*mlps(3, scale=1.0), *[Linear(torch.zeros(H, H)) for _ in range(2)]])
    found = everything(toy)
    for number in (3, 4):
        assert found["removal"][number]["mean"] == 0.0
        assert found["jacobian"][number]["mean"] == 0.0
        assert found["angle, token mean"]["mean"][number][number + 1] == pytest.approx(0.0, abs=1e-7)
        assert not found["usefulness"]["useful"][number]
    for number in range(3):
        assert abs(found["removal"][number]["mean"]) > 1e-3
        assert found["jacobian"][number]["mean"] > 0.1
    assert found["permutation"][3]["mean"] == 0.0


def test_the_jacobian_against_autograd():
    block = Mlp(0.4, torch.Generator().manual_seed(2))
    toy, text = Toy([block]), tokens(2, 5)
    model = traced(toy)
    trace = model.trace(text)
    whole = torch.autograd.functional.jacobian(lambda x: block(x), trace.streams[0].detach())
    n = trace.streams[0].numel()
    exact = float((whole.reshape(n, n) - torch.eye(n)).norm() / math.sqrt(n))
    found = distance(squared_distances(model, trace, 1, 400, torch.Generator().manual_seed(0)))
    assert abs(found.mean - exact) <= 4 * found.error
    assert found.error < 0.02 * exact


def test_the_jacobian_of_a_known_map():
    """x + W x has |J - I| / |I| = |W| / sqrt(h), whatever the draw where W is a multiple of the identity."""
    found = everything(Toy([Linear(0.25 * torch.eye(H))]))["jacobian"][0]
    assert found["mean"] == pytest.approx(0.25, rel=1e-6)
    assert found["error"] == pytest.approx(0.0, abs=1e-7)


def test_lens_at_the_last_block_is_the_model():
    found = everything(Toy(mlps(3)))
    assert len(found["logit lens"]) == 4
    assert found["logit lens"][-1]["mean"] == pytest.approx(found["loss"]["mean"], abs=1e-6)


def test_nan_weights_name_the_block():
    toy = Toy(mlps(4))
    toy.blocks[2].b.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite from block 3 on"):
        everything(toy)


def test_one_sample_has_no_error():
    assert estimate([2.0]).as_dict() == {"mean": 2.0, "error": None}


# Mutants: what the figures would be if a metric were wrong in a way that looks right.


def test_detects_jacobian_without_identity(monkeypatch):
    monkeypatch.setattr(jacobian.torch.autograd, "grad", lambda after, stream, signs, **_: (2 * signs,))
    found = squared_distances(traced(Toy(mlps(1))), traced(Toy(mlps(1))).trace(tokens()), 1, 2, torch.Generator())
    assert found == [1.0, 1.0]
