"""Which datasets a run reads: blends on the command line, in files and in recipes, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from megatron_cod.data.datasets.blends import blends_of, read_blend
from megatron_cod.data.datasets.check import check_prefix
from megatron_cod.data.datasets.tokenizer_match import TrainedWith
from megatron_cod.data.preprocessing.run import PreprocessJob, preprocess
from megatron_cod.data.sample_corpus import sample_corpus_path
from megatron_cod.data.tokenizers.choice import TokenizerChoice
from megatron_cod.data.tokenizers.sentencepiece_training import TokenizerTraining, train_tokenizer
from megatron_cod.training.data.dataset_checks import check_data
from megatron_cod.training.flags.data_section import data_flags
from megatron_cod.training.flags.parser import build_parser
from megatron_cod.training.flags.recipe_files import load_recipe
from megatron_cod.training.flags.recipes import recipe_flags, resolved_yaml


@pytest.fixture(scope="module")
def parser():
    return build_parser()


@pytest.fixture
def arguments(parser):
    """Arguments as a run parses them, with the bare minimum beside those given."""

    def parse(*flags: str) -> Namespace:
        return parser.parse_args(["--eval-iters", "0", *flags])

    return parse


def test_reads_prefixes_and_weights() -> None:
    assert read_blend("--data-path", ["a", "b"]).weights is None
    blend = read_blend("--data-path", ["3", "a", "1e0", "b"])
    assert (blend.prefixes, blend.weights, blend.shares()) == (["a", "b"], [3.0, 1.0], [0.75, 0.25])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--data-path names no dataset"),
        (["0.5", "a", "b"], "no weight is before 'b'"),
        (["a", "0.5", "b"], "no weight is before 'a'"),
        (["0.5", "a", "0.5"], "no prefix follows the weight 0.5"),
        (
            ["0.5", "0.5", "a", "b"],
            "the weight 0.5 is followed by 0.5, a number (a dataset with such a name is written ./0.5)",
        ),
        (["0", "a", "1", "b"], "the weight of a must be above 0, found 0; omit it instead"),
        (["-1", "a", "1", "b"], "the weight of a must be above 0, found -1"),
        (["nan", "a", "1", "b"], "the weight of a must be above 0, found nan"),
        (["inf", "a", "1", "b"], "the weight of a must be above 0, found inf"),
        (["1", "a", "2", "a"], "--data-path names a twice; name it once, with a weight where it is to count for more"),
        (["1", "a", "2", "./a"], "--data-path names ./a twice"),
        (["a", "b", "a"], "--data-path names a twice"),
        (["x/a", "x/../x/a"], "--data-path names x/../x/a twice"),
        (["1e308", "a", "1e308", "b"], "--data-path: the weights add up to more than a number can hold"),
    ],
)
def test_rejects_wrong_blends(words: list[str], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_blend("--data-path", words)
    assert says in str(caught.value)


def test_blends_from_flags_and_files_agree(arguments, tmp_path: Path) -> None:
    words = {"train": "0.7 a 0.3 b", "valid": "c", "test": None}
    apart = arguments("--train-data-path", *["0.7", "a", "0.3", "b"], "--valid-data-path", "c")
    (tmp_path / "apart.json").write_text(json.dumps(words))
    in_file = arguments("--per-split-data-args-path", str(tmp_path / "apart.json"))
    for blends in (blends_of(apart), blends_of(in_file)):
        assert {name: (blend.prefixes, blend.weights) for name, blend in blends.items()} == {
            "train": (["a", "b"], [0.7, 0.3]),
            "valid": (["c"], None),
        }
    (tmp_path / "all.txt").write_text("1 a\n2 b\n")
    together = blends_of(arguments("--data-args-path", str(tmp_path / "all.txt")))["all"]
    assert (together.prefixes, together.weights) == (["a", "b"], [1.0, 2.0])
    assert blends_of(arguments()) == {}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON: Expecting property name"),
        ('{"train": "a', "is not JSON: Unterminated string starting at: line 1 column 11"),
        ("[]", "must hold the keys train, valid and test (null for a split without data), found list"),
        ('{"train": "a"}', "must hold the keys train, valid and test (null for a split without data), found train"),
        ('{"train": 5, "valid": null, "test": null}', "train must hold a string or a list of strings"),
        ('{"train": "1 a b", "valid": null, "test": null}', ", train takes dataset prefixes, or a weight before each"),
    ],
)
def test_rejects_wrong_files(arguments, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError) as caught:
        blends_of(arguments("--per-split-data-args-path", str(tmp_path / "x.json")))
    assert says in str(caught.value)


def test_flags_that_exclude_each_other(arguments, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data-path and --train-data-path exclude each other"):
        blends_of(arguments("--data-path", "a", "--train-data-path", "b"))
    with pytest.raises(ValueError, match=r"--data-args-path .*none\.txt cannot be read"):
        blends_of(arguments("--data-args-path", str(tmp_path / "none.txt")))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    """Two tokenizers, and a dataset made with the first."""
    folder = tmp_path_factory.mktemp("tokenizers")
    models = []
    for number, size in enumerate((500, 600)):
        job = TokenizerTraining([str(sample_corpus_path())], str(folder / f"{number}"), vocab_size=size)
        models.append(train_tokenizer(job).model)
    choice = TokenizerChoice("SentencePieceTokenizer", models[0])
    preprocess(PreprocessJob([str(sample_corpus_path())], str(folder / "d"), choice, append_eod=True))
    return folder / "d_text_document", models


def test_a_tokenizer_that_changed_is_noticed(arguments, sentencepiece, tmp_path: Path) -> None:
    prefix, (first, second) = sentencepiece
    flags = ["--train-data-path", str(prefix), "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model"]
    check_data(arguments(*flags, str(first)), 600)
    elsewhere = tmp_path / "moved.model"
    shutil.copy(first, elsewhere)
    check_data(arguments(*flags, str(elsewhere)), 600)
    with pytest.raises(ValueError) as caught:
        check_data(arguments(*flags, str(second)), 600)
    message = str(caught.value)
    assert "\n" not in message
    hashes = [hashlib.sha256(model.read_bytes()).hexdigest()[:12] for model in (first, second)]
    assert f"was made with the tokenizer model {first} (sha256 {hashes[0]})" in message
    assert f"--tokenizer-model {second} is another one (sha256 {hashes[1]})" in message
    check_prefix(prefix, trained_with=TrainedWith("SentencePieceTokenizer", "some/hub-name"))


def test_bytes_are_not_pieces(arguments, text_data: Path, sentencepiece) -> None:
    prefix = text_data / "some_train_text_document"
    flags = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", str(sentencepiece[1][0])]
    with pytest.raises(ValueError, match="was made with ByteLevelTokenizer, but the model has SentencePieceTokenizer"):
        check_data(arguments("--train-data-path", str(prefix), *flags), 600)


def test_a_missing_set_is_named(arguments, text_data: Path) -> None:
    good = str(text_data / "some_train_text_document")
    with pytest.raises(ValueError, match=r"dataset .*/none does not exist"):
        check_data(arguments("--train-data-path", "0.5", good, "0.5", str(text_data / "none")), 257)
    with pytest.raises(ValueError, match="no data: give --data-path"):
        check_data(arguments(), 257)


def test_a_split_without_documents_is_refused(arguments, text_data: Path) -> None:
    """Megatron looks for an end to it forever."""
    prefix = str(text_data / "some_train_text_document")  # 3 documents
    validated = ["--data-path", prefix, "--eval-iters", "1"]
    check_data(arguments(*validated, "--split", "34,33,33"), 257)
    with pytest.raises(ValueError, match=r"--split 90,5,5 leaves no document of .*\(3 documents\) for valid"):
        check_data(arguments(*validated, "--split", "90,5,5"), 257)
    with pytest.raises(ValueError, match="--split 969,30,1 leaves no document"):
        check_data(arguments(*validated), 257)
    check_data(arguments("--data-path", prefix, "--split", "90,5,5"), 257)


def test_a_data_section_becomes_flags(parser) -> None:
    section = {
        "train": [{"path": "a", "weight": 0.7}, {"path": "b", "weight": 3}],
        "valid": "c",
        "test": ["d", {"path": "e"}],
        "cache": "indices",
    }
    assert data_flags(section) == {
        "train-data-path": ["0.7", "a", "3", "b"],
        "valid-data-path": ["c"],
        "test-data-path": ["d", "e"],
        "data-cache-path": "indices",
    }
    assert data_flags({"all": "a", "split": [90, 5, 5]}) == {"data-path": ["a"], "split": "90,5,5"}
    flags = recipe_flags({"lr": 1.0, "data": section}, parser)
    assert flags[:5] == ["--lr=1.0", "--train-data-path", "0.7", "a", "3"]
    assert recipe_flags({"lr": 1.0, "data": section}, parser, ["data"]) == ["--lr=1.0"]
    assert recipe_flags({"lr": 1.0, "data": None}, parser) == ["--lr=1.0"]


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("a", "'data' must hold a mapping with train, valid, test, all, found 'a'"),
        ({"trian": "a"}, "unknown recipe key 'data: trian'; did you mean train?"),
        ({"xyz": "a"}, "unknown recipe key 'data: xyz'; there are train, valid, test, all, split, cache"),
        ({"all": "a", "train": "b"}, "has all and a split of its own"),
        ({"train": "a", "split": "9,1"}, "has split without all"),
        ({"train": [{"path": "a", "weight": 1}, "b"]}, "'data: train': give every dataset a weight, or none"),
        ({"train": [{"path": "a", "wieght": 1}]}, "unknown recipe key 'data: train: wieght'; did you mean weight?"),
        ({"train": [{"weight": 1}]}, "'data: train': {'weight': 1} has no path"),
        ({"train": [{"path": "a", "weight": "much"}]}, "the weight of a must be a number, found 'much'"),
        ({"train": [{"path": "a", "weight": True}]}, "the weight of a must be a number, found True"),
        ({"train": 5}, "'data: train' must hold dataset prefixes or {path: ..., weight: ...}, found 5"),
    ],
)
def test_rejects_wrong_data_sections(section: object, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        data_flags(section)
    assert says in str(caught.value)


def test_recipe_keys_around_the_section(parser) -> None:
    with pytest.raises(ValueError, match="unknown recipe key 'dta'; did you mean data"):
        recipe_flags({"dta": {}}, parser)
    with pytest.raises(ValueError, match="'train-data-path' says again what its section 'data' says"):
        recipe_flags({"data": {"train": "a"}, "train-data-path": "b"}, parser)
    with pytest.raises(ValueError, match="--unset data: the recipe has no such key"):
        recipe_flags({"lr": 1}, parser, ["data"])


def test_the_resolved_recipe_has_the_same_blend(parser, tmp_path: Path) -> None:
    section = {"train": [{"path": "a", "weight": 0.1}, {"path": "b", "weight": 1e-7}], "valid": "c"}
    first = parser.parse_args(recipe_flags({"data": section}, parser))
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(first, parser, {}))
    second = parser.parse_args(recipe_flags(load_recipe(tmp_path / "resolved.yaml"), parser))
    assert blends_of(first) == blends_of(second)
    assert blends_of(second)["train"].weights == [0.1, 1e-7]
    assert "data" not in yaml.safe_load((tmp_path / "resolved.yaml").read_text())


def test_the_command_line_wins_over_the_section(parser) -> None:
    flags = recipe_flags({"data": {"train": ["a", "b"], "valid": "c"}}, parser)
    args = parser.parse_args([*flags, "--train-data-path", "other"])
    assert blends_of(args)["train"].prefixes == ["other"]
