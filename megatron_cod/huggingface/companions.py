"""Files beside the weights: tokenizer and generation files, our key in the config, and the unfolded originals."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_cod.data.tokenizers.native_files import NativeOptions, convert, native_file, why_not_as_it_is
from megatron_cod.errors import UserError
from megatron_cod.huggingface.folding import fold
from megatron_cod.huggingface.side_files import GENERATION, name_ids

KEY = "megatron_cod"
"""Our key in ``config.json``; loaders ignore it."""
FOLDER = "huggingface"
"""Where an imported checkpoint keeps config, tokenizer and generation files of the model that it came from."""
_ORIGINALS = Path(KEY) / "unfolded.safetensors"

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
_OTHERS = (GENERATION,)


def copy(source: Path, target: Path, *, config: bool = True) -> list[str]:
    """Copy what is there of tokenizer and generation files, and the config; returns their names."""
    names = [*TOKENIZER_FILES, *_OTHERS, *(["config.json"] if config else [])]
    found = [name for name in names if (source / name).is_file()]
    if found:
        target.mkdir(exist_ok=True)
    for name in found:
        shutil.copyfile(source / name, target / name)
    return found


def convert_tokenizer(source: Path, target: Path, copied: list[str]) -> tuple[list[str], str | None]:
    """Where an imported model came with tokenizer files of another library alone: convert them. The names, and a note."""
    path = native_file(source)
    if path is None or why_not_as_it_is(source) is None:
        return copied, None
    lines: list[str] = []
    with TemporaryDirectory() as folder:
        made = Path(folder) / FOLDER
        try:
            convert(source, made, NativeOptions(), lines.append)
        except UserError as error:
            return copied, f"the tokenizer is not taken over: {error}"
        names = copy(made, target, config=False)
    return [*copied, *names], f"the tokenizer is converted from {path.name}; {'; '.join(lines)}"


def copy_for_export(args: Namespace, like: Path | None, target: Path, config: dict[str, Any]) -> list[str]:
    """Copy the side files of an export: those of ``like``, but the tokenizer that the checkpoint was trained with, where it
    is another one. ``config`` then has the ids of that one. Returns the names."""
    copied = copy(like, target, config=False) if like else []
    theirs = set(copied) & set(TOKENIZER_FILES)
    if not theirs or like is None:
        return copied + copy_tokenizer_of(args, target)
    with TemporaryDirectory() as own:
        mine = [name for name in copy_tokenizer_of(args, Path(own)) if name in TOKENIZER_FILES]
        content = [(Path(own) / name, like / name) for name in _VOCABULARIES if name in mine]
        if not any(not other.is_file() or one.read_bytes() != other.read_bytes() for one, other in content):
            return copied
        for name in theirs:
            (target / name).unlink()
        for name in mine:
            shutil.copyfile(Path(own) / name, target / name)
    name_ids(args, target, config)
    return [*(set(copied) - theirs), *mine]


def tokenizer_recipe(copied: list[str], output: Path) -> dict[str, Any]:
    """The recipe keys with which training reads text as the model does; without tokenizer files, ids only."""
    folder = output.resolve() / FOLDER
    if "tokenizer.json" in copied or "vocab.json" in copied:
        return {"tokenizer-type": "HuggingFaceTokenizer", "tokenizer-model": str(folder)}
    if "tokenizer.model" in copied:
        return {"tokenizer-type": "SentencePieceTokenizer", "tokenizer-model": str(folder / "tokenizer.model")}
    return {"tokenizer-type": "NullTokenizer"}


def tokens_in(folder: Path) -> int:
    """Tokens of the tokenizer in a directory; 0 where there is none that transformers reads."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return 0
    from transformers import AutoTokenizer

    try:
        return len(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    except Exception:  # it is copied anyway, and training reports what is wrong with it
        return 0


def save_originals(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Keep the weights as they were before folding: dividing by a factor again does not bring back every bit.

    In a folder of its own, and a few vectors only, so that no loader treats it as weights of the model.
    """
    path = folder / _ORIGINALS
    path.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


class Originals:
    """The weights that ``save_originals`` kept, each given out only while it still folds to what the model holds."""

    def __init__(self, folder: Path) -> None:
        self._file: Any = None
        self._stale: list[str] = []
        path = folder / _ORIGINALS
        if path.is_file():
            try:
                self._file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} is damaged or half-written: {error}") from None
        self.names: set[str] = set(self._file.keys()) if self._file else set()

    def take(self, name: str, folded: Tensor, factor: float) -> Tensor | None:
        """The original whose product with ``factor`` is ``folded`` to the bit, or None."""
        original = self._file.get_tensor(name)
        if original.shape == folded.shape and torch.equal(fold(original, factor, folded.dtype), folded):
            return original
        self._stale.append(name)
        return None

    def notes(self) -> list[str]:
        """A line when weights were changed after the export."""
        if not self._stale:
            return []
        return [
            f"{len(self._stale)} folded weights were changed since the export ({self._stale[0]}, ...): they are divided "
            f"by their factor, which is exact to the last bit or two only"
        ]


def copy_tokenizer_of(args: Namespace, target: Path) -> list[str]:
    """Copy the tokenizer that a checkpoint's arguments name, when it is still there and Hugging Face can read it."""
    model = getattr(args, "tokenizer_model", None)
    if not model or not Path(model).exists():
        return []
    path = Path(model)
    if path.is_dir() or path.name == "tokenizer.json":
        return copy(path if path.is_dir() else path.parent, target, config=False)
    if path.suffix != ".model":
        return []
    shutil.copyfile(path, target / "tokenizer.model")
    # Megatron's SentencePiece tokenizers add no special tokens by themselves.
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": False, "legacy": False}
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    if _reads_alike(path, target):
        return ["tokenizer.model", "tokenizer_config.json"]
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (target / name).unlink()
    return []


_PROBE = "The state of our Union is strong: 3 of 4 agree, (really) they do."


def _reads_alike(model: Path, folder: Path) -> bool:
    """Whether transformers gives the ids of SentencePiece: it reads every model as BPE, which a unigram one is not."""
    import sentencepiece
    from transformers import AutoTokenizer

    expected = sentencepiece.SentencePieceProcessor(model_file=str(model)).encode(_PROBE)
    try:
        return AutoTokenizer.from_pretrained(folder).encode(_PROBE) == expected
    except Exception:  # transformers has its own errors for each kind of model that it cannot read
        return False
