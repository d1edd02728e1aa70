"""The same Llama in transformers: shape, weights taken over from a Megatron model, AdamW step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_cod.args import MegatronArgs
from megatron_cod.benchmark.timing import Lap
from megatron_cod.errors import UserError

BETAS, EPS, LEARNING_RATE, WEIGHT_DECAY = (0.9, 0.95), 1e-8, 1e-4, 0.1


@dataclass(frozen=True)
class LlamaShape:
    """The model and its batch; the defaults are the paper's 130M Llama on 4 x 256 tokens."""

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    ffn: int = 2048
    vocab: int = 32000
    seq: int = 256
    batch: int = 4

    @staticmethod
    def of(args: MegatronArgs) -> LlamaShape:
        """The shape that Megatron's flags made, those behind the benchmark's own included.

        UserError for what LlamaForCausalLM with the same weights and one batch a step is not.
        """
        heads = args.num_attention_heads
        if args.global_batch_size != args.micro_batch_size:
            raise UserError(
                f"--global-batch-size {args.global_batch_size}: the comparison takes one micro-batch a step, of "
                f"--micro-batch-size {args.micro_batch_size}"
            )
        if args.group_query_attention and args.num_query_groups != heads:
            raise UserError(f"--num-query-groups {args.num_query_groups}: the comparison has as many as heads, {heads}")
        if args.kv_channels * heads != args.hidden_size:
            raise UserError(f"--kv-channels {args.kv_channels}: the comparison has {args.hidden_size} / {heads} heads")
        return LlamaShape(
            layers=args.num_layers,
            hidden=args.hidden_size,
            heads=heads,
            ffn=args.ffn_hidden_size,
            vocab=args.padded_vocab_size,
            seq=args.seq_length,
            batch=args.micro_batch_size,
        )

    def megatron_flags(self) -> list[str]:
        """The shape, and training as ``step`` does it, in Megatron's flags."""
        beta1, beta2 = (str(beta) for beta in BETAS)
        return [
            *("--num-layers", str(self.layers), "--hidden-size", str(self.hidden)),
            *("--ffn-hidden-size", str(self.ffn), "--num-attention-heads", str(self.heads)),
            *("--seq-length", str(self.seq), "--max-position-embeddings", str(self.seq)),
            *("--vocab-size", str(self.vocab), "--padded-vocab-size", str(self.vocab)),
            *("--micro-batch-size", str(self.batch), "--global-batch-size", str(self.batch)),
            *("--normalization", "RMSNorm", "--norm-epsilon", "1e-6", "--swiglu", "--disable-bias-linear"),
            *("--position-embedding-type", "rope", "--rotary-base", "10000"),
            "--untie-embeddings-and-output-weights",
            *("--attention-dropout", "0", "--hidden-dropout", "0", "--no-create-attention-mask-in-dataloader"),
            *("--tokenizer-type", "NullTokenizer", "--make-vocab-size-divisible-by", "1"),
            *("--adam-beta1", beta1, "--adam-beta2", beta2, "--adam-eps", str(EPS)),
            *("--weight-decay", str(WEIGHT_DECAY), "--clip-grad", "0"),
            *("--lr", str(LEARNING_RATE), "--min-lr", str(LEARNING_RATE), "--lr-decay-style", "constant"),
            *("--train-iters", "1000000"),
        ]

    def config(self) -> LlamaConfig:
        """The same model for transformers."""
        return LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_attention_heads=self.heads,
            vocab_size=self.vocab,
            max_position_embeddings=self.seq,
            rms_norm_eps=1e-6,
            rope_theta=10000.0,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
        )


def from_megatron(parameters: Iterable[tuple[str, Tensor]], heads: int) -> dict[str, Tensor]:
    """Megatron's parameters under Hugging Face names. No grouped queries: qkv is [heads * 3 * d, h] by head."""
    outer = {
        "embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "output_layer.weight": "lm_head.weight",
        "decoder.final_layernorm.weight": "model.norm.weight",
    }
    inner = {
        "input_layernorm.weight": "input_layernorm.weight",
        "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
        "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
        "mlp.linear_fc2.weight": "mlp.down_proj.weight",
    }
    state: dict[str, Tensor] = {}
    for name, parameter in parameters:
        tensor = parameter.detach()
        if name in outer:
            state[outer[name]] = tensor.clone()
            continue
        _, _, layer, rest = name.split(".", 3)
        prefix = f"model.layers.{layer}."
        if rest in inner:
            state[prefix + inner[rest]] = tensor.clone()
        elif rest == "mlp.linear_fc1.weight":
            for part, rows in zip(("gate", "up"), tensor.chunk(2), strict=True):
                state[f"{prefix}mlp.{part}_proj.weight"] = rows.clone()
        elif rest == "self_attention.linear_qkv.weight":
            by_head = tensor.view(heads, 3, -1, tensor.shape[1])
            for index, part in enumerate("qkv"):
                state[f"{prefix}self_attn.{part}_proj.weight"] = by_head[:, index].reshape(-1, tensor.shape[1])
        else:
            raise ValueError(f"the benchmark's Llama has no parameter like {name}")
    return state


class TransformersLlama:
    """LlamaForCausalLM with torch's fused AdamW, the default of transformers' Trainer; norms are not decayed."""

    def __init__(self, shape: LlamaShape, state: dict[str, Tensor]) -> None:
        self.model = LlamaForCausalLM(shape.config())
        self.model.load_state_dict(state)
        self.model.train()
        groups = [
            {"params": [p for p in self.model.parameters() if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in self.model.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS, fused=True)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits [b, s, v], without gradient."""
        with torch.no_grad():
            return self.model(input_ids=batch["tokens"], use_cache=False).logits

    def step(self, batches: Sequence[dict[str, Tensor]], clock: Callable[[], float]) -> Lap:
        """Forward, transformers' own loss, backward, AdamW; ``batches`` holds one micro-batch."""
        (batch,) = batches
        torch.cuda.synchronize()  # nothing to wait for on a CPU, where adaptations/cpu.py replaces it
        start = clock()
        self.optimizer.zero_grad()
        labels = batch["labels"]
        # shift_labels: Megatron's labels are shifted already.
        out = self.model(input_ids=batch["tokens"], labels=labels, shift_labels=labels, use_cache=False)
        out.loss.backward()
        torch.cuda.synchronize()
        before_optimizer = clock()
        self.optimizer.step()
        loss = out.loss.item()
        torch.cuda.synchronize()
        end = clock()
        return Lap(end - start, end - before_optimizer, loss)

    def evaluate(self, rows: Tensor, batch: int) -> float:
        """Summed loss of rows [n, s + 1] of tokens, ``batch`` of them at once, in inference mode."""
        total = 0.0
        self.model.eval()
        with torch.inference_mode():
            for some in rows.split(batch):
                logits = self.model(input_ids=some[:, :-1], use_cache=False).logits
                total += F.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten(), reduction="sum").item()
        self.model.train()
        return total
