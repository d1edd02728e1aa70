import math

import pytest
import torch

from megatron_cod.schemes.depth import DepthScaled, bind_depth_factor, depth_factor
from megatron_cod.schemes.init_policy import INIT_POLICIES, resolve_init_policy
from megatron_cod.schemes.table import SCHEMES, get_scheme


@pytest.mark.parametrize("number", [1, 2, 3, 24, 126])
def test_factor_is_one_over_root_l(number):
    assert depth_factor(number) == pytest.approx(1 / math.sqrt(number), rel=1e-15)
    assert type(depth_factor(number)) is float


@pytest.mark.parametrize("number", [0, -1])
def test_zero_based_numbers_are_refused(number):
    with pytest.raises(ValueError, match="count from 1"):
        depth_factor(number)


class _Norm(DepthScaled, torch.nn.Module):
    pass


def test_binding_wants_exactly_two_norms():
    layer = torch.nn.ModuleList([_Norm(), _Norm()])
    bind_depth_factor(layer, 4, depth_factor(4))
    assert [norm.bound_factor() for norm in layer] == [0.5, 0.5]
    for count in (0, 1, 3):
        with pytest.raises(RuntimeError, match=f"has {count} depth-scaled modules"):
            bind_depth_factor(torch.nn.ModuleList([_Norm() for _ in range(count)]), 4, 0.5)


def test_an_unbound_norm_refuses_to_run():
    with pytest.raises(RuntimeError, match="never bound"):
        _Norm().bound_factor()


def test_every_scheme_has_a_known_init_policy():
    for name, scheme in SCHEMES.items():
        assert scheme.name == name
        assert scheme.default_init in INIT_POLICIES


def test_unknown_scheme_names_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean pre_ln\?"):
        get_scheme("preln")


@pytest.mark.parametrize(
    ("scheme", "asked", "policy", "said"),
    [
        ("lns", None, "normal", "1/sqrt(2L) scaling is off"),
        ("lns", "scaled", "scaled", "worse than LNS without"),
        ("pre_ln", None, "scaled", "as Megatron ships"),
        ("pre_ln", "normal", "normal", "asked for by --init-policy"),
    ],
)
def test_init_policy_defaults_and_the_users_word(scheme, asked, policy, said):
    found, line = resolve_init_policy(scheme, asked)
    assert found == policy
    assert said in line
