"""The page of an exported model, and the page beside Megatron checkpoints."""

import re

import pytest
import yaml

from megatron_cod.checkpoint import readme
from megatron_cod.huggingface.export import ExportJob, export_model
from megatron_cod.schemes.table import SCHEMES, STOCK
from tests.distributed.launch import run_training_ranks


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card") / "run"
    ended = run_training_ranks(1, [*tiny, "--save", str(folder)])
    assert ended[0].code == 0, ended[0].output[-2000:]
    assert "no --save-interval: saving every 1000 steps and at the end" in ended[0].output
    assert (folder / "iter_0000008").is_dir()
    return folder


def card_of(run, output, **options):
    export_model(ExportJob(run, output, verify=False, **options))
    text = (output / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


@pytest.mark.slow
def test_the_card_has_what_the_hub_reads_and_a_reader_asks(run, tmp_path):
    head, body = card_of(run, tmp_path / "hf", license="apache-2.0", base_model="someone/model")
    assert head["library_name"] == "transformers" and head["license"] == "apache-2.0"
    assert head["base_model"] == "someone/model" and "llama" in head["tags"] and "norm-scheme:lns" in head["tags"]
    assert "x + F(N(x) / sqrt(l))" in body and "factors are folded into the weights" in body
    rows = dict(re.findall(r"^\| ([\w ]+) \| ([^|]+) \|$", body, re.MULTILINE))
    resolved = yaml.safe_load((run / "resolved_args.yaml").read_text())
    assert rows["layers"] == "4" and rows["training steps"] == "8"
    assert rows["tokens seen"] == f"{8 * resolved['global-batch-size'] * resolved['seq-length']:,}"
    assert float(rows["training loss"]) > 0 and float(rows["validation loss"]) > 0
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", body, re.DOTALL)[1])
    assert recipe["num-layers"] == 4 and "save" not in recipe and str(run) not in body
    assert "arXiv:2502.05795" in body and "@software{megatron_cod" in body


def test_an_export_without_folding_is_said_to_be_one(run, tmp_path):
    head, body = card_of(run, tmp_path / "hf", fold=False)
    assert "NOT folded" in body and "license" not in head


def test_the_loading_lines_of_the_card_run(run, tmp_path):
    _, body = card_of(run, tmp_path / "hf")
    code = re.search(r"```python\n(.*?)```", body, re.DOTALL)[1]
    code = "\n".join(line for line in code.splitlines() if "okenizer" not in line or line.startswith("from"))
    found: dict = {}
    exec(code.replace("THIS_DIRECTORY_OR_ITS_NAME_ON_THE_HUB", str(tmp_path / "hf")), found)
    assert found["model"].config.num_hidden_layers == 4


def test_checkpoints_say_which_tools_would_lose_the_factors(run):
    text = (run / readme.NAME).read_text()
    assert "norm scheme lns" in text and "x + F(N(x) / sqrt(l))" in text and "megatron-cod convert export" in text


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_but_the_stock_one_has_the_page(scheme, tmp_path):
    readme.write_readme(tmp_path, scheme, "1")
    assert (tmp_path / readme.NAME).exists() is (scheme != STOCK)
