"""Shared by all tests; the environment that Megatron reads is prepared before anything imports it."""

import json
import os
import sys
from pathlib import Path

import pytest

# Asked of the driver's library, not of the driver: it would start here, and a process forked from one where it has
# started cannot use a GPU.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

# The workers of pytest-xdist take the cores: threads of each would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.gpu_emulation.__main__ import SWITCH
from tests.te import emulation

if emulation.is_asked_for():  # before anything imports Megatron
    emulation.install()

import megatron_cod.training.before_megatron  # noqa: F401
from megatron_cod.adaptations import cpu, torch_only
from megatron_cod.data.preprocessing.run import PreprocessJob, preprocess
from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers.choice import TokenizerChoice

# Programs that tests start compile the package's sources once, not each time, also where the environment asks for that.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """The tests are about CPU processes, also on a machine with GPUs: those are hidden unless their tests are asked for."""
    if os.environ.get(SWITCH) not in ("emulated", "real") and not _asks_for_gpus(config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _asks_for_gpus(marks: str) -> bool:
    return "gpu" in marks.replace("not gpu", "").split()


def _mark_slow(items: list[pytest.Item]) -> None:
    """Of a test under ``slow_except(ids)`` all parametrizations but these become slow."""
    unknown: dict[str, set[str]] = {}
    for item in items:
        mark = item.get_closest_marker("slow_except")
        if mark is None:
            continue
        name = item.nodeid.split("[")[0]
        case = item.callspec.id  # type: ignore[attr-defined]
        unknown.setdefault(name, set(mark.args)).discard(case)
        if case not in mark.args:
            item.add_marker(pytest.mark.slow)
    wrong = [f"{name}: no case {sorted(ids)}" for name, ids in unknown.items() if ids]
    if wrong:
        raise pytest.UsageError("; ".join(wrong))


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _mark_slow(items)
    skip = pytest.mark.skip(reason="no CUDA device on this machine, or hidden: pytest -m gpu")
    emulated = pytest.mark.skip(reason="a test of time: needs a real GPU, and this one is emulated")
    for item in items:
        if "gpu" in item.keywords and not cpu.has_cuda():
            item.add_marker(skip)
        elif "gpu_time" in item.keywords and os.environ.get(SWITCH) == "emulated":
            item.add_marker(emulated)


@pytest.fixture(autouse=True)
def no_scheme_stays_registered():
    """Schemes of tests/schemes/outside end with their test: the pages and parsers of later tests have the package's."""
    from megatron_cod.schemes.table import SCHEMES

    before = dict(SCHEMES)
    yield
    for name in SCHEMES.keys() - before.keys():
        del SCHEMES[name]
    SCHEMES.update(before)
    for module in [name for name in sys.modules if name.startswith("tests.schemes.outside.")]:
        del sys.modules[module]  # a later import registers it again


@pytest.fixture(scope="session")
def one_process():
    """Megatron's groups for a world of one, in the test process itself, for modules that ask for them."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    torch_only.install()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)
    yield
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


TINY = [
    *("--recipe", str(ROOT / "recipes" / "debug.yaml"), "--num-layers", "4"),
    *("--hidden-size", "32", "--ffn-hidden-size", "64", "--seq-length", "32", "--train-iters", "8"),
    *("--log-interval", "1", "--eval-interval", "4", "--eval-iters", "2"),
]


@pytest.fixture(scope="session")
def text_data(tmp_path_factory):
    """A few real speeches as byte-level tokens; the flags that train on them."""
    folder = tmp_path_factory.mktemp("data")
    lines = sample_corpus_path().read_text().splitlines()[:4]
    source = folder / "some.jsonl"
    source.write_text("\n".join(json.dumps({"text": json.loads(line)["text"]}) for line in lines))
    preprocess(
        PreprocessJob(
            inputs=(str(source),),
            output_prefix=str(folder / "some"),
            tokenizer=TokenizerChoice("ByteLevelTokenizer"),
            append_eod=True,
            holdout_every=4,
        )
    )
    return folder


@pytest.fixture(scope="session")
def tiny(text_data):
    """Flags of a run of seconds on real text, over two pipeline stages when given two ranks."""
    return [
        *TINY,
        *("--train-data-path", str(text_data / "some_train_text_document")),
        *("--valid-data-path", str(text_data / "some_valid_text_document")),
    ]
