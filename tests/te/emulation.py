"""The real Python code of Transformer Engine on a CPU: its compiled module is replaced by a few kernels written in torch.

``install`` must run before anything imports Megatron, which looks for Transformer Engine once. Only high precision is
emulated; a kernel that is not here raises NotImplementedError with its name.
"""

import enum
import os
import sys
import types
import warnings
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

SWITCH = "MEGATRON_COD_TE"
PLACE = Path(os.environ.get("MEGATRON_COD_TE_SITE", Path(__file__).parents[2] / ".venv" / "transformer_engine"))
"""Where ``tools/make_venv.sh`` puts the Python part of Transformer Engine, outside the environment's own path."""


class DType(enum.IntEnum):
    """The numbers of transformer_engine.h, as far as its Python code names them."""

    kByte = 0
    kInt32 = 2
    kFloat32 = 4
    kFloat16 = 5
    kBFloat16 = 6
    kFloat8E4M3 = 7
    kFloat8E5M2 = 8
    kFloat4E2M1 = 10


_TORCH = {DType.kFloat32: torch.float32, DType.kFloat16: torch.float16, DType.kBFloat16: torch.bfloat16}


def _gain(weight: Tensor, zero_centered: bool) -> Tensor:
    return weight.float() + 1 if zero_centered else weight.float()


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x.float()
    mean = x.mean(-1)
    return mean, ((x - mean[:, None]).square().mean(-1) + eps).rsqrt()


def rmsnorm_fwd(x, weight, eps, out, quantizer, dtype, _margin, zero_centered):
    assert quantizer is None, "only high precision is emulated"
    rstd = (x.float().square().mean(-1) + eps).rsqrt()
    y = (x.float() * rstd[:, None] * _gain(weight, zero_centered)).to(_TORCH[DType(int(dtype))])
    return (y if out is None else out.copy_(y)), None, rstd


def rmsnorm_bwd(dy, x, rstd, weight, _margin, zero_centered):
    normalized, scaled = x.float() * rstd[:, None], dy.float() * _gain(weight, zero_centered)
    dx = rstd[:, None] * (scaled - normalized * (scaled * normalized).mean(-1, keepdim=True))
    return dx.to(x.dtype), (dy.float() * normalized).sum(0).to(weight.dtype)


def rmsnorm_bwd_add(dy, x, add, rstd, weight, margin, zero_centered):
    dx, dw = rmsnorm_bwd(dy, x, rstd, weight, margin, zero_centered)
    return dx + add, dw


def layernorm_fwd(x, weight, bias, eps, out, quantizer, dtype, _margin, zero_centered):
    assert quantizer is None, "only high precision is emulated"
    mean, rstd = _statistics(x, eps)
    y = (x.float() - mean[:, None]) * rstd[:, None] * _gain(weight, zero_centered) + bias.float()
    y = y.to(_TORCH[DType(int(dtype))])
    return (y if out is None else out.copy_(y)), mean, rstd


def layernorm_bwd(dy, x, mean, rstd, weight, _margin, zero_centered):
    normalized = (x.float() - mean[:, None]) * rstd[:, None]
    scaled = dy.float() * _gain(weight, zero_centered)
    correction = scaled.mean(-1, keepdim=True) + normalized * (scaled * normalized).mean(-1, keepdim=True)
    dx = rstd[:, None] * (scaled - correction)
    return dx.to(x.dtype), (dy.float() * normalized).sum(0).to(weight.dtype), dy.float().sum(0).to(weight.dtype)


def generic_gemm(a, transa, b, transb, out, quantizer, dtype, bias, _bias_dtype, gelu, _gelu_in, grad, *rest, **more):
    """cuBLAS's column-major A B, which is op(b) op(a) of row-major tensors. rest: workspace, its size, accumulate, ..."""
    assert quantizer is None and not gelu and more["comm_overlap"] is None, "only plain products are emulated"
    rows = b.reshape(-1, b.shape[-1])
    left = rows.t() if transb else rows
    right = a.reshape(-1, a.shape[-1])
    product = left @ (right.t() if transa else right)
    bias_grad = None
    if bias is not None:
        if grad:
            bias_grad = rows.sum(0)
        else:
            product = product + bias
    shape = product.shape if transb else (*b.shape[:-1], product.shape[-1])
    product = product.reshape(shape).to(_TORCH[DType(int(dtype))] if dtype is not None else b.dtype)
    if out is not None:
        product = out.add_(product) if rest[2] else out.copy_(product)
    return product, bias_grad, None, None


def swiglu(x, _quantizer, *_, **__):
    gate, up = x.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)


def dswiglu(dy, x, _quantizer, *_, **__):
    with torch.enable_grad():
        leaf = x.detach().float().requires_grad_()
        gate, up = leaf.chunk(2, dim=-1)
        (torch.nn.functional.silu(gate) * up).backward(dy.float())
    return leaf.grad.to(x.dtype)


def convert_thd_to_bshd(packed, cu_seqlens, batch, longest):
    """Packed samples [t, h, d] as rows of their own [b, s, h, d], zeros behind each."""
    rows = packed.new_zeros(batch, longest, *packed.shape[1:])
    for row, (start, end) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)):
        rows[row, : end - start] = packed[start:end]
    return rows


def convert_bshd_to_thd(rows, cu_seqlens, tokens):
    packed = rows.new_zeros(tokens, *rows.shape[2:])
    for row, (start, end) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)):
        packed[start:end] = rows[row, : end - start]
    return packed


KERNELS = [rmsnorm_fwd, rmsnorm_bwd, rmsnorm_bwd_add, layernorm_fwd, layernorm_bwd, generic_gemm, swiglu, dswiglu]
KERNELS += [convert_thd_to_bshd, convert_bshd_to_thd]


class _Bag:
    """Stands for a C++ enum or class that is named but never used here."""

    def __init__(self, *_: Any, **__: Any) -> None: ...


class _BagType(type):
    """Gives every member asked for a number of its own."""

    @property
    def __members__(cls) -> dict[str, int]:
        return {name: value for name, value in vars(cls).items() if type(value) is int}

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(cls, name, len(cls.__members__))
        return vars(cls)[name]


class _Compiled(types.ModuleType):
    """transformer_engine_torch: our kernels; other functions are made on demand and raise when called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper():
            made: Any = _BagType(name, (_Bag,), {})
        else:

            def made(*_: Any, **__: Any) -> Any:
                raise NotImplementedError(f"transformer_engine_torch.{name} is not emulated")

        setattr(self, name, made)
        return made


def is_asked_for() -> bool:
    return os.environ.get(SWITCH) == "emulated"


def install() -> None:
    """Make ``transformer_engine`` importable in this process; RuntimeError where its Python part is not installed."""
    if "transformer_engine_torch" in sys.modules:
        return
    if "megatron.core" in sys.modules:
        raise RuntimeError("Megatron was imported before the emulation of Transformer Engine")
    if not (PLACE / "transformer_engine").is_dir():
        raise RuntimeError(f"no Transformer Engine in {PLACE}; make venv puts it there")
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # its import then does not look for the core library
    sys.path.append(str(PLACE))
    compiled = _Compiled("transformer_engine_torch")
    compiled.DType = DType
    for kernel in KERNELS:
        setattr(compiled, kernel.__name__, kernel)
    compiled.get_cudnn_version = lambda: 91000
    compiled.get_cublasLt_version = lambda: 130000
    compiled.get_num_cublas_streams = lambda: 1
    compiled.is_non_tn_fp8_gemm_supported = lambda: False
    sys.modules["transformer_engine_torch"] = compiled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformer_engine.common as common

        common.load_framework_extension = lambda _framework: None
        from transformer_engine.pytorch.cpp_extensions import gemm

    # Megatron then takes torch's AdamW, which adaptations/cpu.py is made for.
    sys.modules["transformer_engine.pytorch.optimizers"] = None  # type: ignore[assignment]
    gemm.get_cublas_workspace = lambda *_: torch.empty(1, dtype=torch.uint8)
    _replace_everywhere("canonicalize_device", lambda device: torch.device("cpu" if device is None else device))
    torch.cuda.is_current_stream_capturing = lambda: False
    from transformer_engine.pytorch.attention import DotProductAttention
    from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

    # It refuses construction and tensors where there is no GPU; only there may torch tell of one.
    _while_patched(TransformerEngineBaseModule, "__init__", lambda: mock.patch("torch.cuda.is_available", lambda: True))
    on_cuda = partial(mock.patch.object, torch.Tensor, "is_cuda", True)
    _while_patched(TransformerEngineBaseModule, "prepare_forward", on_cuda)
    _while_patched(DotProductAttention, "forward", on_cuda)
    from transformer_engine.pytorch.attention.dot_product_attention import utils

    # It moves a mask to "cuda" by name.
    _while_patched(utils, "get_padding_mask", lambda: mock.patch.object(torch.Tensor, "to", _stay))


def _stay(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    return tensor


def _while_patched(cls: Any, method: str, patch: Callable[[], Any]) -> None:
    """Run a method of a class, or a function of a module, under a patch."""
    right = getattr(cls, method)

    @wraps(right)
    def patched(*args: Any, **kwargs: Any) -> Any:
        with patch():
            return right(*args, **kwargs)

    setattr(cls, method, patched)


def _replace_everywhere(name: str, function: Any) -> None:
    """Put a function in the place of Transformer Engine's in each of its modules that imported it."""
    for path, module in list(sys.modules.items()):
        if path.startswith("transformer_engine.") and module is not None and name in vars(module):
            setattr(module, name, function)
