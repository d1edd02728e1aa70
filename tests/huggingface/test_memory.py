"""Peak memory of a conversion: bounded by the largest tensors, whatever the number of layers. 7B shapes, few layers."""

import json
import subprocess
import sys

import pytest
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
# The tensors that one row of the table joins: gate and up, or the embedding.
LARGEST = max(2 * FFN * HIDDEN, VOCAB * HIDDEN) * 2
# In a process of its own, so that the peak is this conversion's.
CHILD = """\
import runpy, sys
sys.argv = ["convert_hf.py", *sys.argv[2:]]
try:
    runpy.run_path("{tool}", run_name="__main__")
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
        save_file(held, folder / file)
    for layer in range(layers):
        start = f"model.layers.{layer}."
        held = {f"{start}self_attn.{name}_proj.weight": made(HIDDEN, HIDDEN) for name in "qkvo"}
        held |= {f"{start}mlp.{name}_proj.weight": made(FFN, HIDDEN) for name in ("gate", "up")}
        held[f"{start}mlp.down_proj.weight"] = made(HIDDEN, FFN)
        held |= {f"{start}{name}_layernorm.weight": made(HIDDEN) for name in ("input", "post_attention")}
        save_file(held, folder / f"layer{layer}.safetensors")
        weight_map |= dict.fromkeys(held, f"layer{layer}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def peak(*arguments) -> int:
    code = CHILD.format(tool=ROOT / "tools" / "convert_hf.py")
    command = [sys.executable, "-c", code, "-", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_model(tmp_path):
    peaks: dict[tuple[str, int], int] = {}
    for layers in (2, 5):
        folder = tmp_path / str(layers)
        folder.mkdir()
        write_llama(folder / "hf", layers)
        peaks["import", layers] = peak(
            *("import", "--model", folder / "hf", "--output", folder / "lns", "--as-scheme", "lns", "--no-verify")
        )
        command = ("export", "--checkpoint", folder / "lns", "--output", folder / "back", "--no-verify")
        peaks["export", layers] = peak(*command)
        print({f"{way} {layers} layers": f"{found / 1e9:.2f} GB" for (way, layers), found in peaks.items()})
        subprocess.run(["rm", "-r", str(folder)], check=True)
    allowed = 1.3 * LARGEST + 2e9
    assert max(peaks.values()) <= allowed, (peaks, allowed)
    for way in ("import", "export"):
        # Three layers more are 1.2 GB more of weights.
        assert abs(peaks[way, 5] - peaks[way, 2]) < 0.2e9, peaks
