"""Transformer Engine's norms with a depth factor. Import this only where Transformer Engine is installed.

They are operations of its fuser, which reads gamma's values in the forward and again in the backward, outside autograd:
both must get s * gamma, and the gradient that comes back is that of s * gamma, so it is multiplied by s.
"""

from typing import Any

import torch
import transformer_engine.pytorch as te
from megatron.core.extensions.transformer_engine import TEFusedResidualRMSNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from transformer_engine.pytorch import ops
from transformer_engine.pytorch.ops.fused import BackwardAddRMSNorm

from megatron_cod.backends.gain import scaled_gain, shadowed
from megatron_cod.errors import UserError
from megatron_cod.schemes.depth import DepthScaled
from megatron_cod.schemes.post_norm import Deferred


class _Stateless:
    """Mixin over Transformer Engine's norms: no ``_extra_state`` in checkpoints.

    It would hold the state of quantizers, of which a norm has none. The norms of the other backends have no such key, and
    with it no checkpoint would move from there to here.
    """

    get_extra_state = torch.nn.Module.get_extra_state
    set_extra_state = torch.nn.Module.set_extra_state


class _DepthScaledOp(DepthScaled):
    """Mixin over Transformer Engine's norm operations: the kernels get s * gamma and s * beta, [h] each."""

    def op_forward(self, ctx: Any, input_: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """input_ [..., h] -> s * norm [..., h]. The scaled vectors are kept for the backward, which needs them again."""
        own: Any = self
        factor = self.bound_factor()
        values = {
            "weight": scaled_gain(own.weight, factor, own.zero_centered_gamma),
            "zero_centered_gamma": False,
        }
        if "bias" in own._parameters:
            values["bias"] = own.bias * factor
        ctx.depth_scaled = values
        with shadowed(own, values):
            return super().op_forward(ctx, input_, *args, **kwargs)  # type: ignore[misc]

    def op_backward(self, ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """grad_output [..., h] -> the input's gradient, and those of gamma (and beta)."""
        own: Any = self
        with shadowed(own, ctx.depth_scaled):
            grad_input, gradients = super().op_backward(ctx, grad_output)  # type: ignore[misc]
        return grad_input, self.scaled(gradients)

    def scaled(self, gradients: Any) -> tuple[torch.Tensor, ...]:
        """The gradients of gamma and beta, from those of s * gamma and s * beta."""
        return tuple(gradient * self.bound_factor() for gradient in gradients)


class DepthScaledTERMSNorm(_Stateless, _DepthScaledOp, te.RMSNorm):
    """depth_factor * RMSNorm(x), [..., h]."""


class DepthScaledTELayerNorm(_Stateless, _DepthScaledOp, te.LayerNorm):
    """depth_factor * LayerNorm(x), [..., h]."""


class _RMSNormInChain(_DepthScaledOp, ops.RMSNorm):
    """A depth-scaled norm within a chain of fused operations."""


class _LayerNormInChain(_DepthScaledOp, ops.LayerNorm):
    """A depth-scaled norm within a chain of fused operations."""


class _BackwardAddDepthScaledRMSNorm(BackwardAddRMSNorm):
    """Transformer Engine's fused backward of norm and residual sum, which reads gamma directly."""

    def fuser_backward(self, basic_op_ctxs: Any, grad_output: torch.Tensor, **kwargs: Any) -> Any:
        norm: Any = self.basic_ops[1]
        with shadowed(norm, basic_op_ctxs[1].depth_scaled):
            grad_input, gradients, extra = super().fuser_backward(basic_op_ctxs, grad_output, **kwargs)
        return grad_input, [gradients[0], norm.scaled(gradients[1])], extra


def _fuse_backward(chain: list[Any], **_: Any) -> list[Any]:
    """The fusion function that Transformer Engine's fuser calls: residual fork and depth-scaled norm become one."""
    fused: list[Any] = []
    for op in chain:
        fork = fused[-1] if fused else None
        if isinstance(op, _RMSNormInChain) and isinstance(fork, ops.MakeExtraOutput) and not fork._in_place:
            fused[-1] = _BackwardAddDepthScaledRMSNorm(add=fork, rmsnorm=op)
        else:
            fused.append(op)
    return fused


# Before Transformer Engine's own, which would take the norm for a plain one and use gamma without the factor.
ops.register_backward_fusion(_fuse_backward, prepend=True)


def scale_norm_in_chain(chain: Any, factor: float) -> None:
    """Put a depth-scaled norm, on the same parameters, in the place of the one norm of a ``te.ops.Sequential``.

    RuntimeError unless there is exactly one: a chain built in another way than is known here must not pass unscaled.
    """
    places = [place for place, op in enumerate(chain) if isinstance(op, ops.RMSNorm | ops.LayerNorm)]
    if len(places) != 1:
        raise RuntimeError(f"{len(places)} norms in a chain of fused operations, expected 1: {chain}")
    plain = chain[places[0]]
    cls = _RMSNormInChain if isinstance(plain, ops.RMSNorm) else _LayerNormInChain
    scaled: Any = cls(
        plain.weight.shape,
        eps=plain.eps,
        device="meta",  # the parameters are there already
        dtype=plain.weight.dtype,
        zero_centered_gamma=plain.zero_centered_gamma,
        sm_margin=plain._sm_margins,
    )
    for name, parameter in plain.named_parameters(recurse=False):
        setattr(scaled, name, parameter)
    scaled.depth_factor = factor
    chain[places[0]] = scaled


class DepthScaledTEFusedResidualRMSNorm(_Stateless, DepthScaled, TEFusedResidualRMSNorm):
    """``--fused-residual-rmsnorm``: x [s, b, h] -> (depth_factor * RMSNorm(x), x)."""

    def _make_fused_impl(self) -> Any:
        chain = super()._make_fused_impl()
        scale_norm_in_chain(chain, self.bound_factor())
        return chain


class PlainTERMSNorm(_Stateless, te.RMSNorm):
    """RMSNorm, [..., h]."""


class PlainTELayerNorm(_Stateless, te.LayerNorm):
    """LayerNorm, [..., h]."""


class PlainTEFusedResidualRMSNorm(_Stateless, TEFusedResidualRMSNorm):
    """``--fused-residual-rmsnorm``: x [s, b, h] -> (RMSNorm(x), x)."""


class DeferredTERMSNorm(_Stateless, Deferred, te.RMSNorm):
    """RMSNorm before the branch, or after the residual sum."""


class DeferredTELayerNorm(_Stateless, Deferred, te.LayerNorm):
    """LayerNorm before the branch, or after the residual sum."""


def _built(table: dict[str, type], config: TransformerConfig, hidden_size: int, eps: float) -> torch.nn.Module:
    """A norm of one of our classes, with the arguments that Megatron's ``TENorm`` gives Transformer Engine's."""
    if config.normalization not in table:
        raise UserError(f"Transformer Engine has {' and '.join(table)}, not --normalization {config.normalization}")
    return table[config.normalization](
        normalized_shape=hidden_size,
        eps=eps,
        sequence_parallel=config.sequence_parallel,
        zero_centered_gamma=config.layernorm_zero_centered_gamma,
        dtype=config.params_dtype,
        device=_device(config),
    )


def _device(config: TransformerConfig) -> str | int | torch.device:
    """Where Megatron makes the parameters of its Transformer Engine modules."""
    if config.use_cpu_initialization:
        return "cpu"
    return "meta" if config.init_model_with_meta_device else torch.cuda.current_device()


def depth_scaled_te_norm(config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> torch.nn.Module:
    """A norm that carries a depth factor, to be bound by its layer (a ``LayerNormBuilder``)."""
    return _built({"RMSNorm": DepthScaledTERMSNorm, "LayerNorm": DepthScaledTELayerNorm}, config, hidden_size, eps)


def depth_scaled_te_norm_with_residual(
    config: TransformerConfig, hidden_size: int, eps: float = 1e-5
) -> torch.nn.Module:
    """The same where Megatron would fuse the residual fork into the norm, if ``--fused-residual-rmsnorm`` asks for it."""
    if not config.fused_residual_rmsnorm:
        return depth_scaled_te_norm(config, hidden_size, eps)
    return _built({"RMSNorm": DepthScaledTEFusedResidualRMSNorm}, config, hidden_size, eps)


def deferred_te_norm(config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> torch.nn.Module:
    """A norm that its block may apply after the residual sum (a ``LayerNormBuilder``)."""
    return _built({"RMSNorm": DeferredTERMSNorm, "LayerNorm": DeferredTELayerNorm}, config, hidden_size, eps)


def te_norm(config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> torch.nn.Module:
    """A plain norm (a ``LayerNormBuilder``)."""
    return _built({"RMSNorm": PlainTERMSNorm, "LayerNorm": PlainTELayerNorm}, config, hidden_size, eps)


def te_norm_with_residual(config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> torch.nn.Module:
    """The same where Megatron would fuse the residual fork into the norm, if ``--fused-residual-rmsnorm`` asks for it."""
    if not config.fused_residual_rmsnorm:
        return te_norm(config, hidden_size, eps)
    return _built({"RMSNorm": PlainTEFusedResidualRMSNorm}, config, hidden_size, eps)
