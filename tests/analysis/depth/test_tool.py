"""tools/analyze_depth.py as a user runs it, on tiny models; and the report's files."""

import json
import re

import pytest
import torch

from megatron_cod.analysis.depth.measure import METRICS, Budget, measure
from megatron_cod.analysis.depth.summary import effective_depth, sentences
from megatron_cod.analysis.depth.text import split_text
from tests.analysis.depth.models import build
from tests.analysis.depth.toys import WORDS, H, Linear, Toy, mlps, save_tokenizer, tokens, traced
from tests.programs import run_program


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    build("llama").save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Words enough for 320 tokens."""
    ids = torch.randint(0, 61, (320,), generator=torch.Generator().manual_seed(0)).tolist()
    path = tmp_path_factory.mktemp("data") / "words.jsonl"
    rows = [" ".join(WORDS[one] for one in ids[start : start + 80]) for start in range(0, 320, 80)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def analyze(*arguments):
    return run_program("analyze_depth.py", *arguments)


SMALL = ["--tokens", "64", "--fit-tokens", "128", "--seq-length", "16", "--jacobian-draws", "1"]


@pytest.fixture(scope="module")
def report(model, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "one"
    done = analyze("--model", model, "--data", data, "--output", out, "--name", "one", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "3 blocks, loss" in done.stdout
    return out


def test_writes_all_files_of_a_report(report):
    found = json.loads((report / "depth.json").read_text())
    assert found["depth"] == 3 and found["tokens"] == 64
    assert found["facts"]["sequences"] == 4
    rows = (report / "depth.csv").read_text().splitlines()
    assert len(rows) == 4 and rows[0].startswith("block,variance after,")
    page = (report / "report.html").read_text()
    pictures = list(report.glob("*.png"))
    assert len(pictures) == 11
    assert page.count("data:image/png;base64,") == len(pictures)  # self-contained
    assert not re.search(r"(src|href)=['\"]?(https?:|/|\w+\.png)", page)


def test_token_ids_need_no_tokenizer(tmp_path):
    from megatron_cod.data.megatron_api import IndexedDatasetBuilder

    build("llama").save_pretrained(tmp_path / "model")
    builder = IndexedDatasetBuilder(f"{tmp_path / 'ids'}.bin")
    builder.add_document(torch.randint(0, 61, (320,)), [320])
    builder.finalize(f"{tmp_path / 'ids'}.idx")
    command = ["--model", tmp_path / "model", "--output", tmp_path / "report", *SMALL, "--dry-run"]
    done = analyze(*command, "--data", tmp_path / "ids")
    assert done.returncode == 0 and "3 blocks" in done.stdout, done.stderr
    (tmp_path / "text.txt").write_text("a text")
    done = analyze(*command, "--data", tmp_path / "text.txt")
    assert done.returncode == 2 and "no tokenizer files" in done.stderr


def test_tool_and_library_measure_the_same(report, model, data):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from megatron_cod.analysis.depth.models import traced_transformers

    words = AutoTokenizer.from_pretrained(model)
    evaluation, fit = split_text(data, words, length=16, batch=4, evaluation=64, fit=128, vocab=61)
    direct = measure(
        traced_transformers(AutoModelForCausalLM.from_pretrained(model)), Budget(evaluation, fit, 1), METRICS
    )
    found = json.loads((report / "depth.json").read_text())
    for name in ("removal", "permutation", "logit lens", "jacobian"):
        assert [one["mean"] for one in found[name]] == pytest.approx([one["mean"] for one in direct[name]], abs=1e-5)


@pytest.mark.slow
def test_overlays_reports(report, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "depth.json").write_text((report / "depth.json").read_text())
    done = analyze("--compare", report, other, "--output", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "both" / "report.html").read_text()
    assert "Depth report: one, other" in page
    assert {path.name for path in (tmp_path / "both").glob("*.json")} == {"depth_one.json", "depth_other.json"}


WRONG = {
    "no model": (["--model", "nowhere", "--data", "{data}"], "nowhere does not exist"),
    "no text": (["--model", "{model}", "--data", "nowhere.txt"], "nowhere.txt cannot be read: No such file"),
    "text too short": (["--model", "{model}", "--data", "{data}", "--tokens", "9999"], r"gives 320 tokens, too few"),
    "neither": ([], "give either --model with --data, or --compare"),
    "no result": (["--compare", "."], "holds no depth.json"),
    "unknown blocks": (["--model", "{model}", "--data", "{data}", "--blocks", "h"], r"no such list of modules.*\(3\)"),
    "fit too little": (
        ["--model", "{model}", "--data", "{data}", *SMALL, "--fit-tokens", "16", "--dry-run"],
        "16 tokens are too few to fit a linear map",
    ),
}


@pytest.mark.slow_except("neither", "no model", "no result", "unknown blocks")
@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_rejects_bad_input_in_one_line(model, data, tmp_path, arguments, message):
    given = [one.format(model=model, data=data) for one in arguments]
    done = analyze(*given, "--output", tmp_path / "out")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(message, line), line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_rejects_tokenizer_that_does_not_fit(model, data, tmp_path):
    save_tokenizer(tmp_path / "words", [f"x{number}" for number in range(40)] + WORDS)
    done = analyze(
        "--model", model, "--data", data, "--tokenizer", tmp_path / "words", "--output", tmp_path / "o", *SMALL
    )
    assert done.returncode == 2
    assert re.search(r"error: the tokenizer does not fit the model: it gives id \d+, the model has 61", done.stderr)


def test_reports_nan_weights(data, tmp_path):
    model = build("llama")
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    done = analyze("--model", tmp_path / "model", "--data", data, "--output", tmp_path / "o", *SMALL)
    assert done.returncode == 2
    assert "error: the residual stream is not finite from block 2 on" in done.stderr


def test_sentences_count_the_blocks():
    toy = Toy([*mlps(3, scale=1.0), *[Linear(torch.zeros(H, H)) for _ in range(2)]])
    found = measure(traced(toy), Budget([tokens()], [tokens(20, 20, 9)]), METRICS)
    counts = effective_depth(found)
    assert counts["blocks"] == 5
    assert counts["far from the identity"] == 3
    assert counts["turning"] == 3
    assert counts["carrying"] <= 3 and counts["useful"] <= 3
    assert any(line.startswith("3 of 5 blocks are further than 0.1 from the identity") for line in sentences(found))
