"""What does the model say? Text from a Megatron checkpoint or an exported Hugging Face directory, on CPU or GPU.

    megatron-cod generate --model hf/first "The state of our Union"
    megatron-cod generate --checkpoint runs/smollm2 "The state of our Union" --sample --temperature 0.8 --top-p 0.95
    megatron-cod generate --checkpoint runs/sft --chat "How is our Union?"

A checkpoint is read as the stock model that megatron-cod convert would export, in memory: no file is written. Greedy
unless --sample. The text goes to stdout, alone; with --chat the answer without the question.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_cod.cli.parsing import Parser
from megatron_cod.errors import UserError, run_tool
from megatron_cod.schemes.imports import add_import_flag

if TYPE_CHECKING:
    from megatron_cod.huggingface.generation import Chat, Sampling


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="Megatron checkpoint: what --save named, or iter_N"
    )
    source.add_argument("--model", type=Path, metavar="DIR", help="Hugging Face directory")
    add_import_flag(parser)
    parser.add_argument("prompt", nargs="?", help="text to continue; with --chat it may be omitted")
    parser.add_argument(
        "--chat",
        action="store_true",
        help="the prompt is a user's message under the model's chat template (docs/sft.md); without a prompt, a "
        "conversation: a message a line, /new begins another, Ctrl-C ends an answer, Ctrl-D the program",
    )
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint of a run (default: the latest)")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="directory with tokenizer files (default: the model's own)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=50, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--sample", action="store_true", help="draw tokens instead of taking the likeliest")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="with --sample (%(default)s)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="with --sample: of the K likeliest (all)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="with --sample: nucleus (%(default)s)")
    parser.add_argument("--seed", type=int, default=1234, help="with --sample (%(default)s)")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda:N (default: cuda where there is one, else cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: %(default)s)")
    return parser


def _sampling(args: argparse.Namespace) -> Sampling | None:
    from megatron_cod.huggingface.generation import Sampling

    given = [args.temperature != 1.0, args.top_k != 0, args.top_p != 1.0]
    if not args.sample:
        if any(given):
            raise UserError("--temperature, --top-k and --top-p go with --sample")
        return None
    return Sampling(args.temperature, args.top_k, args.top_p, args.seed)


def _converse(chat: Chat) -> None:
    """Messages from standard input, answers as they are found."""
    mark = "> " if sys.stdin.isatty() else ""
    if mark:
        import readline  # noqa: F401  # line editing of input()
    while True:
        try:
            question = input(mark).strip()
        except EOFError:
            return
        if question == "/new":
            chat.messages.clear()
        elif question:
            _print_answer(chat, question)


def _print_answer(chat: Chat, question: str) -> None:
    parts = chat.answer(question)
    try:
        for part in parts:
            print(part, end="", flush=True)
    except UserError as error:
        print(f"error: {error}; /new begins another conversation", file=sys.stderr)
        return
    except KeyboardInterrupt:
        parts.close()
    print(flush=True)


def main() -> None:
    args = build_parser().parse_args()
    if args.prompt is None and not args.chat:
        raise UserError("give a prompt, or --chat")
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens} must be at least 1")
    # After parsing, so that --help answers at once; first, as Megatron reads what it prepares.
    from megatron_cod.training import before_megatron  # noqa: F401, I001
    from megatron_cod.huggingface.generation import Chat, answer, generate, open_checkpoint, open_directory
    from megatron_cod.launch.devices import device_named

    sampling, device = _sampling(args), device_named(args.device)
    if args.checkpoint:
        model, tokenizer = open_checkpoint(args.checkpoint, args.step, args.tokenizer, args.dtype)
    else:
        model, tokenizer = open_directory(args.model, args.tokenizer, args.dtype)
    model = model.to(device)
    if args.prompt is None:
        _converse(Chat(model, tokenizer, args.max_new_tokens, sampling))
        return
    # On a terminal, mark the model's part.
    if sys.stderr.isatty():
        print(args.prompt, file=sys.stderr)
    generated = answer if args.chat else generate
    print(generated(model, tokenizer, args.prompt, args.max_new_tokens, sampling))


if __name__ == "__main__":
    run_tool(main)
