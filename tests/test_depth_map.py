import pytest

from megatron_cod.depth_map import DepthMapError, StageLayers, check_depth_map, format_depth_map
from megatron_cod.schemes.depth import depth_factor


def stage(rank, layers, virtual=0, scaled=True, factor=depth_factor):
    factors = tuple((factor(number),) * 2 if scaled else () for number in layers)
    return StageLayers(rank, virtual, tuple(layers), factors)


GOOD = {
    "one": [stage(0, range(1, 9))],
    "pp2": [stage(1, range(5, 9)), stage(0, range(1, 5))],
    "uneven": [stage(0, [1]), stage(1, range(2, 8)), stage(2, [8])],
    "empty stage": [stage(0, []), stage(1, range(1, 9))],
    "pp2 vp2": [stage(0, [1, 2]), stage(1, [3, 4]), stage(0, [5, 6], 1), stage(1, [7, 8], 1)],
    "pre_ln": [stage(0, range(1, 9), scaled=False)],
}


@pytest.mark.parametrize("stages", GOOD.values(), ids=GOOD)
def test_accepts_right_maps(stages):
    check_depth_map(stages, 8)


BAD = {
    "stage-local": ([stage(0, range(1, 5)), stage(1, range(1, 5))], r"stage 1.*holds layer 1 where layer 5"),
    "0-based": ([stage(0, range(8), factor=lambda n: 1.0)], r"stage 0.*holds layer 0 where layer 1"),
    "swapped stages": ([stage(0, range(5, 9)), stage(1, range(1, 5))], r"stage 0.*holds layer 5 where layer 1"),
    "shifted": ([stage(0, range(1, 5)), stage(1, range(6, 10))], r"stage 1.*holds layer 6 where layer 5"),
    "hole": ([stage(0, [1, 2, 4, 5])], r"layer 4 where layer 3"),
    "twice": ([stage(0, [1, 2, 2, 3])], r"layer 2 where layer 3"),
    "too few": ([stage(0, range(1, 5)), stage(1, range(5, 8))], r"layers 1\.\.7, but --num-layers is 8"),
    "too many": ([stage(0, range(1, 10))], r"layers 1\.\.9, but --num-layers is 8"),
    "chunk order": (
        [stage(0, [1, 2]), stage(1, [5, 6]), stage(0, [3, 4], 1), stage(1, [7, 8], 1)],
        r"stage 1, virtual stage 0 holds layer 5 where layer 3",
    ),
    "wrong factor": ([stage(0, range(1, 9), factor=lambda n: depth_factor(2 * n))], r"wrong depth factor.*layer 1"),
}


@pytest.mark.parametrize(("stages", "message"), BAD.values(), ids=BAD)
def test_rejects_wrong_maps_and_names_the_stage(stages, message):
    with pytest.raises(DepthMapError, match=message):
        check_depth_map(stages, 8)


def test_the_printed_map_names_stages_layers_and_factors():
    text = format_depth_map(GOOD["pp2 vp2"])
    assert "pipeline stage 1, virtual stage 1: layers 7..8, norm factors 0.3780..0.3536" in text
    assert "norms unscaled" in format_depth_map(GOOD["pre_ln"])
    assert "no layers" in format_depth_map(GOOD["empty stage"])
