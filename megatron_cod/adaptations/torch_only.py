"""What Megatron needs where neither Transformer Engine nor Apex is installed, on GPUs and on CPU processes alike.

Megatron has a fallback in plain torch for what these packages do; where a fallback is wrong or needlessly slow, its name
is one row of ``TORCH_ADAPTED``, with the reason. Where either package is installed nothing here is used.
"""

from megatron_cod.adaptations import cpu
from megatron_cod.adaptations.table import Adapted, put_in
from megatron_cod.adaptations.torch_multi_tensor import copy, l2_norm, scale, with_one_copy
from megatron_cod.adaptations.torch_optimizer import (
    state_beside_parameters,
    with_loading_flag,
    with_optimizer_state,
    with_own_steps,
    with_step,
)

_DISTRIBUTED = "megatron.core.optimizer.distrib_optimizer.DistributedOptimizer"
_CLIPPING, _OPTIMIZER = "megatron.core.optimizer.clip_grads", "megatron.core.optimizer.optimizer"
_LOGGING = "megatron.training.utils.common_utils"
_RESUME = "loading a checkpoint of the distributed optimizer fails with torch's AdamW"

TORCH_ADAPTED = (
    Adapted(_DISTRIBUTED, "state_dict", with_optimizer_state, _RESUME, wraps=True),
    Adapted(_DISTRIBUTED, "load_state_dict", with_own_steps, _RESUME, wraps=True),
    Adapted(_DISTRIBUTED, "_set_main_param_and_optimizer_states", with_step, _RESUME, wraps=True),
    Adapted(_CLIPPING, "l2_norm_impl", l2_norm, "the gradient norm waits for the device once a parameter"),
    Adapted(_LOGGING, "multi_tensor_l2norm", l2_norm, "--log-params-norm waits for the device once a parameter"),
    Adapted(_CLIPPING, "multi_tensor_scale_impl", scale, "clipping launches two kernels a parameter"),
    Adapted(_OPTIMIZER, "multi_tensor_scale_impl", scale, "copies by scaling with 1: two kernels a parameter"),
    Adapted(_OPTIMIZER, "_multi_tensor_copy_this_to_that", copy, "copies parameters one by one"),
    Adapted(_DISTRIBUTED, "_copy_main_params_to_model_params", with_one_copy, "copies them one by one", wraps=True),
    Adapted(
        "megatron.core.optimizer.cpu_offloading.hybrid_optimizer.HybridDeviceOptimizer",
        "_move_new_state_to_right_device",
        state_beside_parameters,
        "with a part of the optimizer on the host, a resumed run has all of its state there",
    ),
    Adapted(
        "megatron.core.optimizer.optimizer.ChainedOptimizer",
        "state_dict",
        with_loading_flag,
        "loading a torch_dcp checkpoint (FSDP2) calls it with is_loading, which it does not take",
        wraps=True,
    ),
)


def applies() -> bool:
    """Whether Megatron runs on its torch fallbacks, as it decided itself when it was imported."""
    from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE

    return not HAVE_APEX_OR_TE


_installed = False


def install() -> None:
    """Adapt Megatron to this machine: to the CPU where there is no GPU (``cpu.py``), and to the packages that are missing.

    A second call does nothing. Raises RuntimeError, naming them, when Megatron has lost a name that is adapted.
    """
    global _installed
    cpu.install()
    if _installed or not applies():
        return
    put_in(TORCH_ADAPTED, "megatron_cod/adaptations/torch_only.py")
    _installed = True
