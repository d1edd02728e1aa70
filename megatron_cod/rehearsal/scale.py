"""The table of docs/scale.md: two recipes from one node to 16,384 GPUs, every figure from ``make_plan``."""

from dataclasses import dataclass
from pathlib import Path

from megatron_cod.rehearsal.launch import read_launch
from megatron_cod.rehearsal.plan import Plan, make_plan
from megatron_cod.rehearsal.report import memory_cells

RECIPES = Path(__file__).parents[2] / "recipes"


@dataclass(frozen=True)
class ScaleRow:
    """A recipe on a number of GPUs, in a layout that we chose."""

    recipe: str
    gpus: int
    tensor: int
    pipeline: int
    virtual: int
    micro_batch: int
    global_batch: int
    """Raised over the recipe's where there are more replicas than it has sequences."""

    def flags(self) -> list[str]:
        """The launch's command line."""
        words = [
            *("--recipe", str(RECIPES / f"{self.recipe}.yaml"), "--mock-data"),
            *("--tensor-model-parallel-size", self.tensor, "--pipeline-model-parallel-size", self.pipeline),
            *("--micro-batch-size", self.micro_batch, "--global-batch-size", self.global_batch),
        ]
        words += ["--sequence-parallel"] if self.tensor > 1 else []
        words += ["--num-virtual-stages-per-pipeline-rank", self.virtual] if self.virtual > 1 else []
        return [str(word) for word in words]


ROWS = (
    ScaleRow("llama_1b", 8, 1, 1, 1, 16, 512),
    ScaleRow("llama_1b", 64, 1, 1, 1, 8, 512),
    ScaleRow("llama_1b", 512, 1, 1, 1, 8, 4096),
    ScaleRow("llama_1b", 4096, 1, 4, 1, 4, 16384),
    ScaleRow("llama_1b", 16384, 1, 8, 3, 4, 65536),
    ScaleRow("llama_7b", 8, 2, 1, 1, 1, 512),
    ScaleRow("llama_7b", 64, 4, 2, 1, 1, 512),
    ScaleRow("llama_7b", 512, 8, 4, 2, 1, 512),
    ScaleRow("llama_7b", 4096, 8, 8, 2, 1, 2048),
    ScaleRow("llama_7b", 16384, 8, 8, 4, 1, 8192),
)


def plan_of(row: ScaleRow) -> Plan:
    """The plan of one row; UserError where its layout does not work."""
    return make_plan(read_launch(row.flags(), row.gpus))


def scale_table(rows: tuple[ScaleRow, ...] = ROWS) -> str:
    """The table as Markdown: memory is that of the stage which needs most."""
    heading = (
        *("recipe", "GPUs", "TP x PP (VPP) x DP", "layers per stage", "parameters per rank"),
        *("weights", "gradients", "optimizer", "activations", "step", "peak (GiB)"),
        *("bubble", "micro-batches", "tokens per step"),
    )
    lines = [heading, tuple("---" for _ in heading)]
    for row in rows:
        plan = plan_of(row)
        worst = max(plan.stages, key=lambda stage: stage.memory.total)
        held = sorted({stage.layers for stage in plan.stages})
        counts = sorted({stage.parameters for stage in plan.stages})
        sizes = plan.sizes
        virtual = f" ({sizes['VPP']})" if sizes["VPP"] > 1 else ""
        lines.append(
            (
                row.recipe,
                f"{row.gpus:,}",
                f"{sizes['TP']} x {sizes['PP']}{virtual} x {sizes['DP']:,}",
                "-".join(map(str, held)),
                " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1]))),
                *memory_cells(worst.memory),
                f"{plan.bubble_ratio:.1%}",
                f"{plan.microbatches} x {plan.micro_batch_size}",
                f"{plan.tokens_per_step:,}",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
