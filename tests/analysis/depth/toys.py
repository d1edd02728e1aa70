"""Small models with known answers."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from megatron_cod.analysis.depth import measure
from megatron_cod.analysis.depth.measure import METRICS, Budget
from megatron_cod.analysis.depth.traced import TracedModel

VOCAB, H = 17, 8


class Linear(torch.nn.Module):
    """x + W x, the stream alone or in a tuple; W = 0 is an exact identity."""

    def __init__(self, weight: torch.Tensor, in_tuple: bool = False) -> None:
        super().__init__()
        self.weight, self.in_tuple = torch.nn.Parameter(weight), in_tuple

    def forward(self, hidden_states, *_, **__):
        out = hidden_states + hidden_states @ self.weight.t()
        return (out, None) if self.in_tuple else out


class Mlp(torch.nn.Module):
    """x + B tanh(A x)."""

    def __init__(self, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.randn(2 * H, H, generator=generator))
        self.b = torch.nn.Parameter(scale * torch.randn(H, 2 * H, generator=generator))

    def forward(self, hidden_states, factor: float = 1.0):
        return hidden_states + factor * torch.tanh(hidden_states @ self.a.t()) @ self.b.t()


class Toy(torch.nn.Module):
    """Embedding, blocks, a norm and a head."""

    def __init__(self, blocks, batch_first: bool = True, factor: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embed = torch.nn.Parameter(torch.randn(VOCAB, H, generator=generator))
        self.head = torch.nn.Parameter(torch.randn(VOCAB, H, generator=generator))
        self.blocks = torch.nn.ModuleList(blocks)
        self.batch_first, self.factor = batch_first, factor

    def forward(self, tokens):
        stream = self.embed[tokens]
        stream = stream if self.batch_first else stream.transpose(0, 1)
        for block in self.blocks:
            out = block(stream, factor=self.factor) if isinstance(block, Mlp) else block(hidden_states=stream)
            stream = out[0] if isinstance(out, tuple) else out
        stream = stream if self.batch_first else stream.transpose(0, 1)
        return torch.nn.functional.layer_norm(stream, (H,)) @ self.head.t()


def traced(toy: Toy) -> TracedModel:
    return TracedModel(toy, toy.blocks, batch_first=toy.batch_first)


def mlps(count: int, scale: float = 0.3) -> list[Mlp]:
    generator = torch.Generator().manual_seed(2)
    return [Mlp(scale, generator) for _ in range(count)]


def tokens(batch: int = 3, length: int = 12, seed: int = 3) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


WORDS = [f"w{number}" for number in range(61)]


def save_tokenizer(folder, words=WORDS):
    inner = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token=words[0]))
    inner.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=words[0]).save_pretrained(folder)


def everything(toy, text=None, fit=None, **kwargs):
    budget = Budget(
        evaluation=[tokens() if text is None else text], fit=[tokens(20, 20, 9)] if fit is None else fit, **kwargs
    )
    return measure.measure(traced(toy), budget, METRICS)
