"""docs/README.md leads to every page; docs/flags.md is what the parsers and a run's metrics say."""

import re

from megatron_cod.analysis.metrics import read_metrics
from tests.conftest import ROOT
from tests.distributed.launch import run_training_ranks
from tests.docs import flags_page

INDEX = ROOT / "docs" / "README.md"


def linked() -> set[str]:
    return set(re.findall(r"\]\(([\w/.]+\.md)\)", INDEX.read_text()))


def test_the_index_leads_to_every_page():
    pages = {path.relative_to(INDEX.parent).as_posix() for path in INDEX.parent.rglob("*.md")} - {"README.md"}
    assert pages - linked() == set()


def test_flags_page_is_generated():
    """Otherwise: ``python -m tests.docs.flags_page``."""
    assert flags_page.PAGE.read_text() == flags_page.page()


def test_every_flag_of_ours_is_on_the_page():
    text = flags_page.PAGE.read_text()
    for parser in flags_page.programs().values():
        for actions in flags_page.groups(parser).values():
            for action in actions:
                assert f"`{action.option_strings[0]}`" in text


def plain(name: str) -> str:
    """A metric's name as the page has it: without numbers of layers, and not by samples."""
    name = re.sub(r"layer \d+", "layer NNN", name.removesuffix(" vs samples"))
    name = re.sub(r"^depth/[^/]+/", "depth/MEASURE/", name)
    return name.replace("loss test", "loss validation").replace("byte test", "byte validation")


def test_every_metric_of_a_run_is_on_the_page(tiny, tmp_path):
    flags = [
        *tiny,
        "--save",
        str(tmp_path),
        "--depth-monitor-interval",
        "4",
        "--log-params-norm",
        "--log-num-zeros-in-grad",
    ]
    assert run_training_ranks(1, flags)[0].code == 0
    names = {plain(name) for name in read_metrics(tmp_path / "metrics.jsonl").scalars}
    assert len(names) > 8
    assert names - set(flags_page.METRICS) == set()
