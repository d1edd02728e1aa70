"""Layers under the wrong number in a checkpoint: the save fails, or going on at another layout is seen to differ."""

from collections.abc import Callable

import pytest

from tests.distributed.launch import run_training_ranks
from tests.distributed.runs import PP2, TOLERANCE, at_step_4, losses, succeed


def _numbered_in_keys(renumber: Callable[[int, int], int]) -> None:
    """While a stage writes its keys, count by ``renumber(layers before it, layers of the model)`` from its first layer."""
    from megatron.core.transformer import transformer_block

    block = transformer_block.TransformerBlock
    write, right = block.sharded_state_dict, transformer_block.get_transformer_layer_offset

    def wrong_keys(self, *args, **kwargs):
        true = [layer.layer_number for layer in self.layers]
        before = renumber(true[0] - 1, self.config.num_layers)
        transformer_block.get_transformer_layer_offset = lambda *_: before
        try:
            for index, layer in enumerate(self.layers):
                layer.layer_number = before + index + 1
            return write(self, *args, **kwargs)
        finally:
            transformer_block.get_transformer_layer_offset = right
            for layer, number in zip(self.layers, true, strict=True):
                layer.layer_number = number

    block.sharded_state_dict = wrong_keys


def local_keys() -> None:
    """The mutant: every stage writes its layers as 0, 1, ..."""
    _numbered_in_keys(lambda before, total: 0)


def swapped_keys() -> None:
    """The mutant: the two stages write under each other's numbers, so that every key is there once."""
    _numbered_in_keys(lambda before, total: (before + total // 2) % total)


def true_keys() -> None:
    """No mutant: the same detour with the right numbers."""
    _numbered_in_keys(lambda before, total: before)


@pytest.mark.slow
def test_rejects_keys_numbered_by_stage(tiny, tmp_path):
    flags = [*tiny, *PP2, "--train-iters", "4", "--save", str(tmp_path / "s"), "--save-interval", "4"]
    ended = run_training_ranks(2, flags, before=local_keys)
    assert all(rank.code for rank in ended)
    assert "Invalid access pattern" in ended[0].output, ended[0].output[-3000:]
    assert not (tmp_path / "s" / "latest_checkpointed_iteration.txt").exists()


@pytest.mark.parametrize("keys", [true_keys, swapped_keys])
@pytest.mark.slow
def test_detects_keys_of_the_other_stage_at_another_layout(tiny, tmp_path, keys):
    whole, one, two = tmp_path / "whole", tmp_path / "one", tmp_path / "two"
    ended = run_training_ranks(2, [*tiny, *PP2, "--save", str(whole), "--save-interval", "4"], before=keys)
    assert [rank.code for rank in ended] == [0, 0], ended[0].output[-3000:]
    expected = losses(whole)[0]
    stopped = at_step_4(whole, tmp_path / "stopped")
    go_on = [*tiny, "--load", str(stopped), "--save-interval", "4", "--save"]
    succeed(1, [*go_on, str(one)])
    assert (max(abs(loss - expected[step]) for step, loss in losses(one)[0].items()) <= TOLERANCE) == (
        keys is true_keys
    )
    # At the layout that wrote them the wrong keys cancel out: only another layout tells.
    ended = run_training_ranks(2, [*go_on, str(two), *PP2], before=keys)
    assert [rank.code for rank in ended] == [0, 0], ended[0].output[-3000:]
    assert losses(two)[0].items() <= expected.items()
