"""Our rotary against Megatron's unfused one: outputs and gradients within 1e-6 in fp32, in every arrangement."""

from types import SimpleNamespace

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd, _apply_rotary_pos_emb_thd

from megatron_cod.backends import torch_rotary
from megatron_cod.backends.packed_samples import PackedSamples
from megatron_cod.backends.torch_rotary import make_rotation, rotate, tables
from tests.backends.rotary import HEADS, B, S, angles, difference, inputs, outcome

ONE = SimpleNamespace(size=lambda: 1, rank=lambda: 0)  # a context-parallel group of one
ARRANGEMENTS = {
    "halves": {},
    "interleaved": {"interleaved": True},
    "a part of the head": {"width": 8},
    "a part, interleaved": {"width": 12, "interleaved": True},
    "yarn's factor": {"mscale": 1.37},
    "grouped queries": {"groups": 1},
    "angles of a batch": {"batch": B},
    "the second chunk of two": {"offset": S},
}


@pytest.fixture(params=["in place", "as compiled"])
def each_way(request, monkeypatch):
    """The host's way, and the formula that the compiler gets on a GPU, run here operation by operation."""
    if request.param == "as compiled":
        monkeypatch.setattr(torch_rotary, "_both_in_place", torch_rotary._both)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
@pytest.mark.usefixtures("each_way")
def test_equals_megatrons_unfused_rotary(arrangement):
    groups, mscale = arrangement.get("groups", HEADS), arrangement.get("mscale", 1.0)
    interleaved = arrangement.get("interleaved", False)
    of = angles(**{name: value for name, value in arrangement.items() if name not in ("groups", "mscale")})
    query, key = inputs(groups)
    rotation = make_rotation(of, torch.float32, interleaved, mscale)
    ours = outcome(query, key, rotate(query, key, rotation, rotation))
    query, key = inputs(groups)
    theirs = outcome(
        query, key, [_apply_rotary_pos_emb_bshd(one, of, interleaved, mscale=mscale) for one in (query, key)]
    )
    assert difference(ours, theirs) <= 1e-6


@pytest.mark.usefixtures("each_way")
def test_equals_megatrons_rotary_of_packed_samples():
    lengths = [10, 1, 29, 8]
    of = angles(max(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])
    samples = PackedSamples(positions)
    assert samples.lengths == lengths and samples.cu_seqlens_q.tolist() == [0, 10, 11, 40, 48]
    query, key = inputs(shape=(48, 1))
    rotation = make_rotation(of, torch.float32, False).at(samples.positions)
    ours = outcome(query, key, rotate(query, key, rotation, rotation))
    query, key = inputs(shape=(48, 1))
    theirs = outcome(
        *(query, key),
        [
            _apply_rotary_pos_emb_thd(one.squeeze(1), samples.cu_seqlens_q, of, cp_group=ONE).unsqueeze(1)
            for one in (query, key)
        ],
    )
    assert difference(ours, theirs) <= 1e-6


def test_queries_and_keys_may_have_angles_of_their_own():
    query, key = inputs()
    first, second = angles(), angles(offset=5)
    turned = rotate(query, key, *(make_rotation(one, torch.float32, False) for one in (first, second)))
    theirs = [_apply_rotary_pos_emb_bshd(one, of) for one, of in ((query, first), (key, second))]
    assert difference(turned, theirs) <= 1e-6


def test_bf16_is_no_further_from_the_truth_than_megatrons():
    of = angles()
    query, key = (one.detach() for one in inputs())
    truth = _apply_rotary_pos_emb_bshd(query, of)
    rounded = query.bfloat16()
    rotation = make_rotation(of, torch.bfloat16, False)
    ours, _ = rotate(rounded, key.bfloat16(), rotation, rotation)
    theirs = _apply_rotary_pos_emb_bshd(rounded, of)
    assert ours.dtype == torch.bfloat16
    assert (ours - truth).abs().mean() <= 1.02 * (theirs - truth).abs().mean()


def test_tables_are_made_once_for_all_layers_and_steps():
    of = angles()
    first = tables.get(of, torch.float32, False, 1.0)
    assert tables.get(of.detach(), torch.float32, False, 1.0) is first  # as recomputation hands them on
    others = [(of, torch.bfloat16, False, 1.0), (of, torch.float32, True, 1.0), (of, torch.float32, False, 2.0)]
    assert all(tables.get(*other) is not first for other in others)


def test_changed_angles_make_a_new_table():
    of = angles()
    first = tables.get(of, torch.float32, False, 1.0)
    of += 1.0
    assert tables.get(of, torch.float32, False, 1.0) is not first
    for _ in range(50):  # their memory is handed out again and again
        shift = float(torch.rand(()))
        again = tables.get(angles(offset=shift), torch.float32, False, 1.0)
        assert torch.equal(again.cos, torch.cos(angles(offset=shift)))


def test_only_the_last_few_tables_are_kept():
    for length in range(1, 30):
        tables.get(angles(length), torch.float32, False, 1.0)
    assert len(tables._kept) == 8
