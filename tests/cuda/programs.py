"""The programs that read or build a model, each with a command at toy size, and those that do not."""

import shlex
import sys

from megatron_cod.data.sample_corpus import sample_corpus_path
from tests.commands import TOY

PYTHON = sys.executable
TORCHRUN = f"{PYTHON} -m torch.distributed.run --standalone"
DEBUG = "recipes/debug.yaml"
TOYS = shlex.join(TOY)
THIN = TOYS.replace("--seq-length 32 ", "")
"""For fine-tuning: no conversation fits into a row of 32 tokens."""
DEPTH = f"--data {sample_corpus_path()} --tokens 64 --fit-tokens 96 --seq-length 32 --batch 1"
BENCHMARK = "tools/benchmark.py {} --rounds 1 --warmup 0"

PROGRAMS = {
    "evaluate": ("", "sotu"),  # the README's own command
    "sft": (
        f"{TORCHRUN} --nproc-per-node 2 -m megatron_cod.training.sft --recipe recipes/sft_debug.yaml --load runs/first "
        f"--sft-data-path chats/sotu_train.jsonl --sft-too-long truncate --unset train-epochs --train-iters 2 "
        f"--log-interval 1 {THIN}",
        "step 2/2 | loss",
    ),
    "convert_hf export": ("tools/convert_hf.py export --checkpoint runs/first --output hf/again", ""),
    "convert_hf import": ("tools/convert_hf.py import --model hf/first --output runs/imported --as-scheme lns", ""),
    "generate": ("tools/generate.py --checkpoint runs/first 'The state' --max-new-tokens 3", "The state"),
    "generate on the host": (
        "tools/generate.py --model hf/first 'The state' --max-new-tokens 3 --device cpu",
        "The state",
    ),
    "analyze_depth": (f"tools/analyze_depth.py --model hf/first --output report {DEPTH}", "wrote report"),
    "analyze_depth, a scheme that does not fold": (
        f"tools/analyze_depth.py --model runs/post --output report_post {DEPTH}",
        "wrote report_post",
    ),
    "prune_layers": ("tools/prune_layers.py --model hf/first --output hf/pruned --remove 3", ""),
    "depth_study": ("tools/depth_study.py recipes/studies/cpu_1m.yaml --plan", "runs"),
    "compare_schemes": (
        f"tools/compare_schemes.py --recipe {DEBUG} --schemes pre_ln,lns --seeds 1 --output compared --steps 2 -- {TOYS}",
        "lns",
    ),
    "benchmark schemes": (f"{BENCHMARK.format('schemes')} --recipe {DEBUG} {TOYS}", "lns / pre_ln"),
    "benchmark monitor": (f"{BENCHMARK.format('monitor')} --recipe {DEBUG} {TOYS}", "every 100 steps"),
    "benchmark hf": (
        f"{BENCHMARK.format('hf')} --layers 2 --hidden 32 --heads 2 --ffn 64 --vocab 64 --seq 16 --batch 1",
        "agree within",
    ),
    "rehearse": (
        f"tools/rehearse.py --world-size 8 --recipe {DEBUG} --tensor-model-parallel-size 2 --mock-data --run-rank 1 "
        f"--global-batch-size 8 {TOYS}",
        "rank 1",
    ),
    "preflight": (f"tools/preflight.py --recipe {DEBUG} --mock-data {TOYS}", "by torch's count"),
}
"""Program -> (its command in a checkout where ``runs/first`` was trained, what it prints)."""

NO_MODEL = {
    "compare_runs": "reads files",
    "inspect_data": "reads files",
    "make_corpus": "text",
    "gpu_proof": "starts other programs: tests/benchmark/test_gpu_proof.py",
    "make_sample_corpus": "text",
    "preprocess_data": "text",
    "benchmark_preprocessing": "text",
    "train_tokenizer": "text",
    "recipes": "prints files",
    "completion": "prints a script",
    "merge": "averages files",
    "init": "copies files",
    "requeue": "reads files",
    "torchrun": "the launcher",
}
