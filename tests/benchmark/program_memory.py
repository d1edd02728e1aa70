"""Peak memory of programs on 7B shapes in bf16, by number of layers: the table of docs/performance.md.

python -m tests.benchmark.program_memory 2 4
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tests.conftest import ROOT

HIDDEN, FFN, VOCAB = 4096, 11008, 32000
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
# In a process of its own, so that the peak is this conversion's.
_CHILD = """\
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
# Not getrusage's: that one begins with the parent's, which made the weights.
held = dict(line.split(":", 1) for line in open("/proc/self/status"))
print("peak", int(held["VmHWM"].split()[0]) * 1024)
"""


def write_llama(folder, layers: int) -> None:
    """A 7B-shaped Llama with ``layers`` layers in bf16, a file a layer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))

    def made(*shape):
        return torch.full(shape, 0.5, dtype=torch.bfloat16)

    files = {
        "outside.safetensors": {"model.embed_tokens.weight": made(VOCAB, HIDDEN), "model.norm.weight": made(HIDDEN)}
    }
    files["outside.safetensors"]["lm_head.weight"] = made(VOCAB, HIDDEN)
    weight_map = {name: file for file, held in files.items() for name in held}
    for file, held in files.items():
        save_file(held, folder / file, metadata={"format": "pt"})
    for layer in range(layers):
        start = f"model.layers.{layer}."
        held = {f"{start}self_attn.{name}_proj.weight": made(HIDDEN, HIDDEN) for name in "qkvo"}
        held |= {f"{start}mlp.{name}_proj.weight": made(FFN, HIDDEN) for name in ("gate", "up")}
        held[f"{start}mlp.down_proj.weight"] = made(HIDDEN, FFN)
        held |= {f"{start}{name}_layernorm.weight": made(HIDDEN) for name in ("input", "post_attention")}
        save_file(held, folder / f"layer{layer}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(held, f"layer{layer}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def peak(module: str, *arguments: object) -> int:
    """Peak resident bytes of ``python -m module arguments`` in one process."""
    command = [sys.executable, "-c", _CHILD, module, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, f"{module}: {done.stdout[-1000:]}{done.stderr}"
    return int(re.findall(r"^peak (\d+)$", done.stdout, re.MULTILINE)[-1])


def _write_tokens(prefix: Path) -> None:
    """Nine documents of 1,024 random tokens."""
    from megatron_cod.data.megatron_api import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for document in np.random.default_rng(1).integers(VOCAB, size=(9, 1024)):
        builder.add_document(torch.from_numpy(document), [len(document)])
    builder.finalize(f"{prefix}.idx")


def _run_of_two(imported: Path, folder: Path) -> Path:
    """A run's directory whose two checkpoints are the imported one."""
    run = folder / "run"
    shutil.copytree(imported, run)
    weights = next(path.parent for path in run.rglob("metadata.json"))
    for step in (1, 2):
        shutil.copytree(weights, run / f"iter_{step:07d}")
    shutil.rmtree(weights)
    (run / "latest_checkpointed_iteration.txt").write_text("2")
    return run


def peaks(folder: Path, layers: int) -> dict[str, int]:
    """Bytes by program."""
    write_llama(folder / "hf", layers)
    _write_tokens(folder / "text")
    convert = "megatron_cod.cli.convert"
    lns, text = folder / "lns", folder / "text"
    found = {
        "import": peak(
            convert, "import", "--model", folder / "hf", "--output", lns, "--as-scheme", "lns", "--no-verify"
        )
    }
    found["export"] = peak(convert, "export", "--checkpoint", lns, "--output", folder / "back", "--no-verify")
    found["export, verified"] = peak(convert, "export", "--checkpoint", lns, "--output", folder / "again")
    found["merge of two"] = peak(
        "megatron_cod.cli.merge", "--run", _run_of_two(lns, folder), "--output", folder / "merged"
    )
    found["evaluate"] = peak("megatron_cod.training.evaluate", "--load", lns, "--eval-data", text, "--seq-length", 512)
    budget = ("--tokens", 512, "--fit-tokens", 2 * HIDDEN + 512, "--seq-length", 512, "--batch", 1)
    found["analyze"] = peak(
        "megatron_cod.cli.analyze", "--model", folder / "back", "--data", text, "--output", folder / "report", *budget
    )
    return found


if __name__ == "__main__":
    columns = {}
    for layers in map(int, sys.argv[1:] or ["2", "4"]):
        with tempfile.TemporaryDirectory() as home:
            columns[layers] = peaks(Path(home), layers)
    print(f"| program | {' | '.join(f'{layers} layers, GB' for layers in columns)} |")
    print(f"| --- |{' ---: |' * len(columns)}")
    for program in next(iter(columns.values())):
        print(f"| {program} | {' | '.join(f'{found[program] / 1e9:.2f}' for found in columns.values())} |")
