"""The Python half of the emulated CUDA runtime: results by CPU kernels, and a report of what was launched.

The environment variable FAKECUDA selects what it does, separated by commas:

numerics  after the CUDA front end of each operation (its checks, shapes, memory, a kernel that does nothing) the
          operation's CPU kernel runs on the same memory
small     the same for small tensors only, so that a model of full size costs neither memory nor time: up to
          FAKECUDA_MOST (4096) elements, and 16 in floating point. Larger results are zeros
report    the Python lines that make the host wait are noted. Where FAKECUDA_REPORT is set, the file FAKECUDA_REPORT.RANK
          gets at exit launches, products, collectives, copies and waits by name, these lines, operations without a CPU
          kernel, and the peak of the allocator

sitecustomize.py beside this file installs it as soon as torch is imported. ../README.md has the rest.
"""

from __future__ import annotations

import atexit
import collections
import ctypes
import math
import os
import traceback

import torch
import torch._subclasses
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten
runtime = ctypes.CDLL("libcuda.so.1")
runtime.fakecuda_report.restype = ctypes.c_char_p
runtime.fakecuda_offset.restype = ctypes.c_int64
OFFSET = runtime.fakecuda_offset()
OWNER = os.getpid()
WAITS: collections.Counter[str] = collections.Counter()
NOT_COMPUTED: collections.Counter[str] = collections.Counter()
PEAKS = ("allocated_bytes.all.peak", "reserved_bytes.all.peak")


# ---- results


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor on the memory of a CUDA one."""
    if not tensor.is_cuda:
        return tensor
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    place = storage.data_ptr() + OFFSET
    host = torch._C._construct_storage_from_data_pointer(place, torch.device("cpu"), storage.nbytes())
    return torch.empty(0, dtype=tensor.dtype).set_(host, tensor.storage_offset(), tensor.size(), tensor.stride())


def on_cpu(arguments):
    """The same arguments for a CPU kernel."""
    arguments = tree_map_only(torch.Tensor, alias, arguments)
    cpu = torch.device("cpu")
    arguments = tree_map_only(torch.device, lambda device: cpu if device.type == "cuda" else device, arguments)
    return tree_map_only(torch.Generator, lambda _: None, arguments)


def lower_right(query, key, is_causal):
    """(is_causal, mask) for the CPU's flash attention, whose triangle is at the upper left; None: it is the same."""
    queries, keys = query.shape[-2], key.shape[-2]
    if not is_causal or queries == keys:
        return is_causal, None
    return False, torch.full((queries, keys), -math.inf, dtype=query.dtype).triu(keys - queries + 1)


def flash(query, key, value, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    is_causal, mask = lower_right(query, key, is_causal)
    return aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale
    )


def flash_backward(
    grad, query, key, value, out, lse, cum_q, cum_k, max_q, max_k, dropout_p, is_causal, seed, offset, *, scale=None
):
    is_causal, mask = lower_right(query, key, is_causal)
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, query, key, value, out, lse, dropout_p, is_causal, attn_mask=mask, scale=scale
    )


def for_each_head(query, tensor):
    """Keys or values [b, groups, s, d] of grouped queries, [b, heads, s, d]."""
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1)


def for_each_group(tensor, gradient):
    """The inverse: gradients of all heads summed into those of the groups."""
    return gradient.unflatten(1, (tensor.shape[1], -1)).sum(2).to(tensor.dtype)


def shares(query, key, bias, is_causal, scale):
    product = query.float() @ key.float().transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        product = product.masked_fill(torch.ones(product.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    return torch.softmax(product if bias is None else product + bias.float(), -1)


def efficient(query, key, value, bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, *, scale=None):
    key, value = for_each_head(query, key), for_each_head(query, value)
    return ((shares(query, key, bias, is_causal, scale) @ value.float()).to(query.dtype),)


def efficient_backward(
    grad, query, key, value, bias, out, lse, seed, offset, dropout_p, mask, is_causal=False, *, scale=None
):
    keys, values = for_each_head(query, key), for_each_head(query, value)
    share, by_share = shares(query, keys, bias, is_causal, scale), grad.float() @ values.float().transpose(-1, -2)
    by_score = share * (by_share - (by_share * share).sum(-1, keepdim=True))
    by_score = by_score * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (
        (by_score @ keys.float()).to(query.dtype),
        for_each_group(key, by_score.transpose(-1, -2) @ query.float()),
        for_each_group(value, share.transpose(-1, -2) @ grad.float()),
        None,
    )


def rms_norm(x, shape, weight, eps):
    wide = x.float()
    mean_square = wide.square().mean(tuple(range(-len(shape), 0)), keepdim=True)
    rstd = torch.rsqrt(mean_square + (torch.finfo(x.dtype).eps if eps is None else eps))
    return (wide * rstd if weight is None else wide * rstd * weight.float()).to(x.dtype), rstd


def rms_norm_backward(grad, x, shape, rstd, weight, mask):
    normalized, grad = x.float() * rstd.float(), grad.float()
    scaled = grad if weight is None else grad * weight.float()
    mean = (scaled * normalized).mean(tuple(range(-len(shape), 0)), keepdim=True)
    by_weight = None
    if weight is not None:
        by_weight = (grad * normalized).sum(tuple(range(x.dim() - len(shape)))).to(weight.dtype)
    return (rstd.float() * (scaled - normalized * mean)).to(x.dtype), by_weight


BY_HAND = {
    aten._scaled_dot_product_flash_attention.default: flash,
    aten._scaled_dot_product_flash_attention_backward.default: flash_backward,
    aten._scaled_dot_product_efficient_attention.default: efficient,
    aten._scaled_dot_product_efficient_attention_backward.default: efficient_backward,
    aten._fused_rms_norm.default: rms_norm,
    aten._fused_rms_norm_backward.default: rms_norm_backward,
}
"""Operations that have only a CUDA kernel; what a function leaves out of its results stays as it was."""

WITHOUT_VALUES = {
    *(aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default),
    *(aten.new_empty_strided.default, aten.resize_.default, aten.detach.default, aten.alias.default),
    *(aten.lift_fresh.default, aten.record_stream.default, aten.is_pinned.default, aten._pin_memory.default),
    *(aten.set_.source_Storage_storage_offset, aten.set_.source_Storage, aten.set_.source_Tensor),
}
"""Operations that compute nothing."""

PLAIN = (torch.Tensor, torch.nn.Parameter)
computing: Numerics | None = None
recording: list | None = None
"""What a CUDA graph that is being captured will do when it is replayed."""


def is_view(func) -> bool:
    returns = func._schema.returns
    aliases = all(one.alias_info is not None and not one.alias_info.is_write for one in returns)
    return bool(returns) and aliases and func is not aten._to_copy.default


def shape_depends_on_values(func, args) -> bool:
    if func is aten.index.Tensor:
        return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
    small_algebra = "linalg_" in func._schema.name and "vector_norm" not in func._schema.name  # cuSOLVER: not emulated
    return torch.Tag.dynamic_output_shape in func.tags or small_algebra


def tensors_of(values) -> list:
    return [one for one in tree_flatten(values)[0] if isinstance(one, torch.Tensor)]


def zeroed(out, given):
    """Zeros where the kernel would have written new tensors: stale memory may hold anything, NaN too."""
    old = {id(one) for one in given}
    for one in tensors_of(out):
        if one.is_cuda and id(one) not in old and one.is_contiguous() and one.numel():
            runtime.fakecuda_zero(ctypes.c_void_p(one.data_ptr()), ctypes.c_size_t(one.nbytes))
    return out


class Numerics(TorchDispatchMode):
    """Computes what the kernels leave undone. most: elements of a tensor that is still computed."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return "small" in os.environ["FAKECUDA"]  # torch.compile then compiles; under numerics it is passed over

    def is_large(self, tensor) -> bool:
        pickled = tensor.dtype is torch.uint8  # objects that ranks exchange
        return tensor.numel() > (16 if tensor.is_floating_point() else 1 << 24 if pickled else self.most)

    def any_large(self, tensors) -> bool:
        return self.most < math.inf and any(map(self.is_large, tensors))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat, given = tree_flatten((args, kwargs))[0], tensors_of((args, kwargs))
        if any(isinstance(one, torch._subclasses.FakeTensor) for one in given):
            return func(*args, **kwargs)
        if any(type(one) not in PLAIN for one in given):
            return NotImplemented  # DTensor and its like take themselves apart first
        devices = [one for one in flat if isinstance(one, torch.device)] + [one.device for one in given]
        captured = recording is not None and torch.cuda.is_current_stream_capturing()
        if captured and func.namespace == "c10d" and any(one.type == "cuda" for one in devices):
            recording.append(Again(func, args, kwargs))
        if not any(one.type == "cuda" for one in devices) or func.namespace not in ("aten", "prims", "fsdp"):
            return func(*args, **kwargs)
        if func in WITHOUT_VALUES or is_view(func):
            return func(*args, **kwargs)
        if self.any_large(given):
            return zeroed(func(*args, **kwargs), given)
        if shape_depends_on_values(func, args):
            device = next(one.device for one in given if one.is_cuda)
            return tree_map_only(torch.Tensor, lambda one: one.to(device), func(*on_cpu(args), **on_cpu(kwargs)))
        if torch.Tag.data_dependent_output in func.tags or func is aten._local_scalar_dense.default:
            func(*args, **kwargs)  # so that it counts as a wait
            return func(*on_cpu(args), **on_cpu(kwargs))
        by_hand = BY_HAND.get(func)
        random = torch.Tag.nondeterministic_seeded in func.tags and by_hand is None
        seed = seed_of(flat) if random else 0
        out = func(*args, **kwargs)
        if self.any_large(tensors_of(out)):
            return zeroed(out, given)
        kernel, its_args, its_kwargs = by_hand or func, on_cpu(args), on_cpu(kwargs)
        old = {id(one) for one in given}
        targets = [
            alias(one) if isinstance(one, torch.Tensor) and id(one) not in old else None for one in tree_flatten(out)[0]
        ]

        def write(found) -> None:
            for target, source in zip(targets, tree_flatten(found)[0], strict=False):
                if target is None or not isinstance(source, torch.Tensor):
                    continue
                if target.data_ptr() != source.data_ptr() and target.shape == source.shape:
                    target.copy_(source)

        if captured:  # computed by replays alone: a sum in place would be added to once too often
            recording.append(lambda: write(kernel(*its_args, **its_kwargs)))
            return out
        if random:
            state = torch.get_rng_state()
            torch.default_generator.manual_seed(seed)
        try:
            found = kernel(*its_args, **its_kwargs)
        except (NotImplementedError, RuntimeError) as error:
            NOT_COMPUTED[f"{func}: {str(error).splitlines()[0][:120]}"] += 1
            if os.environ.get("FAKECUDA_STRICT"):
                raise
            return out
        finally:
            if random:
                torch.set_rng_state(state)
        write(found)
        return out


def seed_of(flat) -> int:
    """A seed for the CPU kernel from the CUDA generator's seed and offset, which advance as on a GPU."""
    given = next((one for one in flat if isinstance(one, torch.Generator)), None)
    generator = given or torch.cuda.default_generators[torch.cuda.current_device()]
    if generator.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return 0
    return (generator.initial_seed() * 1000003 + generator.get_offset()) % (1 << 63)


class Again:
    """A collective of a captured graph: a replay begins it anew, on the memory that its tensors had then."""

    def __init__(self, func, args, kwargs) -> None:
        args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs))
        self.begin = lambda: func(*args, **kwargs)


def make_graphs_replayable() -> None:
    """Have CUDAGraph.replay compute what was captured, on the same memory."""
    graph = torch.cuda.CUDAGraph
    begin, end, replay = graph.capture_begin, graph.capture_end, graph.replay

    def capture_begin(self, *args, **kwargs):
        global recording
        recording = []
        return begin(self, *args, **kwargs)

    def capture_end(self):
        global recording
        self.captured, recording = recording, None
        return end(self)

    def replayed(self) -> None:
        replay(self)
        begun = []
        for operation in getattr(self, "captured", None) or ():
            if isinstance(operation, Again):
                begun.append(operation.begin())
                continue
            if begun:  # what follows is computed by the host, which sees only what has arrived
                torch.cuda.synchronize()
                begun.clear()
            operation()
        if begun:  # the stream's wait for the last of them was captured, and is not made again
            torch.cuda.synchronize()

    graph.capture_begin, graph.capture_end, graph.replay = capture_begin, capture_end, replayed


# ---- the report


@ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p)
def _waited(kind, what) -> None:
    frames = [one for one in traceback.extract_stack()[:-1] if "/torch/" not in one.filename]
    frames = [one for one in frames if one.filename != __file__][-5:]
    place = " < ".join(f"{'/'.join(one.filename.split('/')[-3:])}:{one.lineno} {one.name}" for one in frames[::-1])
    WAITS[f"{kind.decode()} {what.decode()}: {place}"] += 1


def report() -> dict[str, int]:
    """Name -> how often, since the last reset."""
    lines = (line.split("\t", 1) for line in runtime.fakecuda_report().decode().splitlines())
    return {name: int(number) for number, name in lines}


def reset() -> None:
    runtime.fakecuda_reset()
    WAITS.clear()


def full_report() -> dict[str, int]:
    """The same with the Python lines that waited, operations that were not computed, and the allocator's peaks."""
    counted = report()
    counted |= {f"@{name}": number for name, number in WAITS.most_common()}
    counted |= {f"!not computed: {name}": number for name, number in NOT_COMPUTED.most_common()}
    return counted | {f"memory {name}": torch.cuda.memory_stats().get(name, 0) for name in PEAKS}


def write_report() -> None:
    runtime.fakecuda_hook(None)  # libraries still synchronise after Python is gone
    if "FAKECUDA_REPORT" not in os.environ or os.getpid() != OWNER:
        return
    if not any(name.startswith(("kernel:", "gemm:")) for name in report()):
        return  # a helper process
    path = f"{os.environ['FAKECUDA_REPORT']}.{os.environ.get('RANK', '0')}"
    with open(path, "w") as file:
        file.writelines(f"{number}\t{name}\n" for name, number in full_report().items())


def begin_rank(mode: str, path: str | None = None) -> None:
    """For a process forked from one under the emulation: its own mode, and the file its report goes to.

    Call it before the process uses CUDA.
    """
    global OWNER
    OWNER = os.getpid()
    os.environ["FAKECUDA"] = mode
    if path is not None:
        os.environ["FAKECUDA_REPORT"] = path
    reset()
    NOT_COMPUTED.clear()
    assert computing is not None, "the emulation runs without results: FAKECUDA has neither numerics nor small"
    computing.most = most_elements(mode.split(","))


def most_elements(wanted: list[str]) -> float:
    return math.inf if "numerics" in wanted else int(os.environ.get("FAKECUDA_MOST", "4096"))


def install() -> None:
    global computing
    wanted = os.environ["FAKECUDA"].split(",")
    torch.backends.cuda.enable_cudnn_sdp(False)  # its graphs are not emulated; flash attention is next in order
    if "numerics" in wanted or "small" in wanted:
        printed = torch._tensor_str._str  # on the device it would be an operation an element
        torch._tensor_str._str = lambda tensor, **how: printed(
            tensor.detach().cpu() if tensor.is_cuda else tensor, **how
        )
        make_graphs_replayable()
        computing = Numerics(most_elements(wanted))
        computing.__enter__()
    if "report" in wanted:
        runtime.fakecuda_hook(_waited)
        atexit.register(write_report)
        leave = os._exit

        def reported(code: int) -> None:
            write_report()
            leave(code)

        os._exit = reported
