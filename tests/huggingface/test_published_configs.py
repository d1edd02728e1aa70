"""Published layouts are imported, with the recipe and the tensors that transformers has, or refused by name."""

import json
import math

import pytest
import torch

from megatron_cod.errors import UserError
from megatron_cod.huggingface.families.mapping_rows import units
from megatron_cod.huggingface.families.table import architecture_of, get_family
from megatron_cod.huggingface.folding import stock_scheme
from megatron_cod.huggingface.foreign_config import read_config
from megatron_cod.huggingface.recipe import recipe_of
from tests.huggingface.published import IMPORTED
from tests.huggingface.published_refused import REFUSED


def architecture(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    read, unread = read_config(folder)
    assert all("cache_implementation" in note or "hidden_act" in note for note in unread)
    return architecture_of(read)[0]


def _elements(tensors):
    return sum(math.prod(shape) for shape in tensors.values())


def _without_experts(tensors):
    return {name: shape for name, shape in tensors.items() if ".experts." not in name}


@pytest.mark.parametrize("name", IMPORTED)
def test_a_published_layout_has_its_recipe_and_tensors(tmp_path, name):
    import transformers

    config, expected = IMPORTED[name]
    arch = architecture(tmp_path, config)
    recipe = {**recipe_of(arch), "norm-scheme": stock_scheme(arch.branch_norms).name}
    assert {key: recipe.get(key) for key in expected} == expected
    wanted = {
        tensor: shape
        for unit in units(get_family(arch.family).rows, arch)
        for tensor, shape in zip(unit.names, unit.shapes, strict=True)
    }
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    theirs = {tensor: tuple(value.shape) for tensor, value in model.state_dict().items()}
    if arch.tied:
        del theirs["lm_head.weight"]
    # transformers joins the experts of a layer when it loads their files.
    assert _elements(wanted) == _elements(theirs)
    assert _without_experts(wanted) == _without_experts(theirs)


@pytest.mark.parametrize("name", REFUSED)
def test_a_layout_that_megatron_does_not_compute_is_refused_by_name(tmp_path, name):
    config, said = REFUSED[name]
    with pytest.raises(UserError, match=said):
        architecture(tmp_path, config)
