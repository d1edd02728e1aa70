"""Reading a directory of Hugging Face weights: safetensors, or .bin with plain tensors only; one tensor at a time.

Weights in fp8 blocks come out in fp32 (``fp8``).
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_cod.errors import UserError
from megatron_cod.huggingface.fp8 import FP8, Blocks, dequantised, scales_of

# In the order of preference; an index names several files.
_CANDIDATES = (
    *("model.safetensors.index.json", "model.safetensors"),
    *("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
# Buffers that old checkpoints hold and that follow from the config.
_DERIVED = re.compile(r".*\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)")
_OPEN_FILES = 2
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": FP8}
_PLAIN = frozenset(_DTYPES.values()) - {FP8}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; UserError when the file is missing, is no JSON or is something else."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return content


class _Safetensors:
    """One file, checked by safetensors' own reader, then read tensor by tensor.

    Mapped, as that reader has it, every page that was read would count as memory of this process until the end.
    """

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as checked:
                names = list(checked.keys())
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is damaged or half-written: {error}") from None
        self._path, self._start = path, 8 + length
        self._places = {name: header[name]["data_offsets"] for name in names}
        self.shapes = {name: tuple(header[name]["shape"]) for name in names}
        self.dtypes = {name: _DTYPES.get(header[name]["dtype"]) for name in names}

    def read(self, name: str) -> Tensor:
        found = torch.empty(self.shapes[name], dtype=self.dtypes[name])
        start, end = self._places[name]
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._start + start)
            view = memoryview(found.view(-1).view(torch.uint8).numpy())
            done = 0
            while done < end - start:
                count = file.readinto(view[done:])
                if not count:
                    raise UserError(f"{self._path} ends within {name}")
                done += count
        return found


class _Pickle:
    def __init__(self, path: Path) -> None:
        try:
            held = self._load(path)
        except Exception as error:
            text = " ".join(str(error).split())[:160]
            raise UserError(f"{path} is damaged, or holds more than plain tensors: {text}") from None
        if not isinstance(held, Mapping) or not all(isinstance(value, Tensor) for value in held.values()):
            raise UserError(f"{path} holds something else than a dictionary of plain tensors")
        self._held = held
        self.shapes = {str(name): tuple(value.shape) for name, value in held.items()}
        self.dtypes = {str(name): value.dtype if value.is_floating_point() else None for name, value in held.items()}

    @staticmethod
    def _load(path: Path) -> Any:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # torch's format before 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)

    def read(self, name: str) -> Tensor:
        return self._held[name].clone()


class Source:
    """The tensors of a model directory, by name. UserError when files are missing, damaged or no plain tensors.

    blocks: of weights in fp8, which are read as fp32, and their scales not by themselves; None for a directory without.
    """

    def __init__(self, folder: Path, blocks: Blocks | None = None) -> None:
        self.folder, self._blocks = folder, blocks
        self._open: OrderedDict[str, _Safetensors | _Pickle] = OrderedDict()
        self._file_of: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype | None] = {}
        for file in self._files():
            opened = self._opened(file)
            for name, shape in opened.shapes.items():
                if name in self._file_of:
                    raise UserError(f"{folder}: {name} is in {self._file_of[name]} and in {file}")
                self._file_of[name], self.shapes[name] = file, shape
                self._dtypes[name] = opened.dtypes[name]
        for name in [name for name in self.shapes if _DERIVED.fullmatch(name)]:
            del self.shapes[name], self._file_of[name]
        self._scales: dict[str, str] = {}
        if blocks is not None:
            try:
                self._scales = scales_of(self.shapes, self._dtypes, blocks, _PLAIN)
            except UserError as error:
                raise UserError(f"{folder}: {error}") from None
        for name, scale in self._scales.items():
            self._dtypes[name] = torch.float32
            del self.shapes[scale]

    def _files(self) -> Sequence[str]:
        for name in _CANDIDATES:
            path = self.folder / name
            if not path.is_file():
                continue
            if not name.endswith(".json"):
                return [name]
            mapped = read_json(path).get("weight_map")
            if not isinstance(mapped, dict) or not mapped:
                raise UserError(f"{path} has no weight_map")
            files = sorted(set(map(str, mapped.values())))
            missing = [file for file in files if not (self.folder / file).is_file()]
            if missing:
                raise UserError(f"{self.folder} is half-written: {', '.join(missing)} missing")
            return files
        raise UserError(f"{self.folder} holds none of {', '.join(_CANDIDATES)}")

    def _opened(self, file: str) -> _Safetensors | _Pickle:
        if file not in self._open:
            while len(self._open) >= _OPEN_FILES:  # a closed file's pages no longer count as this process's memory
                self._open.popitem(last=False)
            path = self.folder / file
            self._open[file] = _Safetensors(path) if file.endswith(".safetensors") else _Pickle(path)
        self._open.move_to_end(file)
        return self._open[file]

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        found = self._opened(self._file_of[name]).read(name)
        if name not in self._scales or self._blocks is None:
            return found
        scale = self._scales[name]
        return dequantised(found, self._opened(self._file_of[scale]).read(scale), self._blocks)

    @property
    def is_quantised(self) -> bool:
        """Whether any weight is in fp8."""
        return bool(self._scales)

    def dtype(self, names: Sequence[str]) -> torch.dtype:
        """The one that holds all of these tensors exactly; UserError for numbers that are no plain floats."""
        found: torch.dtype | None = None
        for name in names:
            dtype = self._dtypes[name]
            if dtype is None or dtype not in _PLAIN:
                raise UserError(f"{self.folder}: {name} does not hold plain floating-point numbers")
            found = dtype if found is None else torch.promote_types(found, dtype)
        assert found is not None
        return found

    def fingerprint(self) -> Iterator[tuple[str, int, int]]:
        """(file, bytes, modification time in ns) of every file, to know the source again after an interruption."""
        for file in sorted(set(self._file_of.values())):
            stat = (self.folder / file).stat()
            yield file, stat.st_size, stat.st_mtime_ns
