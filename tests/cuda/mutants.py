"""Changes that would make the step on the device slower; ``counted`` calls one by name in the process that trains."""

from typing import Any


def reads_the_loss() -> None:
    """The forward step asks the host for every loss, as for a line of log."""
    from megatron_cod.training.data import batches

    right = batches.loss_func

    def loss_func(*args: Any) -> Any:
        result = right(*args)
        float(result[0])
        return result

    batches.loss_func = loss_func


def lengths_from_the_device() -> None:
    """Packed rows' lengths are taken from the device in every layer."""
    from megatron_cod.backends import torch_attention

    torch_attention.PackedSamples = ()


def scales_activations() -> None:
    """LNS multiplies the output of its norm, not its gain."""
    from megatron_cod.backends.torch_norm import DepthScaledTorchRMSNorm, TorchRMSNorm

    def forward(norm: Any, x: Any) -> Any:
        return TorchRMSNorm.forward(norm, x) * norm.bound_factor()

    DepthScaledTorchRMSNorm.forward = forward


def watches_every_layer() -> None:
    """As the watch for non-finite values once did: each layer's output and its gradient are read again."""
    import torch
    from megatron.core.transformer.transformer_layer import TransformerLayer

    right = TransformerLayer.forward
    flag: list[Any] = []

    def forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
        output = right(layer, *args, **kwargs)
        flag[:] = flag or [torch.zeros((), device=output[0].device)]
        flag[0] += 0.0 * output[0].detach().sum(dtype=torch.float32)
        return output

    TransformerLayer.forward = forward


def turns_twice() -> None:
    """Queries and keys are turned by a formula that is not compiled."""
    from megatron_cod.backends import torch_rotary

    torch_rotary._on_gpu = lambda: torch_rotary._both


def megatrons_rotary() -> None:
    """The attention module is Megatron's."""
    from megatron_cod.backends.torch_self_attention import TorchSelfAttention

    TorchSelfAttention._own_angles = lambda self, given: given.get("rotary_pos_emb")


def one_norm_a_parameter() -> None:
    """Nothing is adapted: Megatron's loops over parameters."""
    from megatron_cod.adaptations import torch_only

    torch_only.TORCH_ADAPTED = ()
