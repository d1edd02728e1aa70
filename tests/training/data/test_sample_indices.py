"""The order of samples that Megatron keeps on disk is bound to what the dataset holds, not to its path."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megatron_cod.data.datasets.check import check_prefix
from megatron_cod.data.datasets.content import content_digest
from megatron_cod.data.preprocessing.run import PreprocessJob, preprocess
from megatron_cod.data.tokenizers.choice import TokenizerChoice
from megatron_cod.errors import UserError
from megatron_cod.launch.start_agreement import compare_votes
from megatron_cod.training.data.sample_indices import ContentDataset, remove_unfinished_blends

LENGTH, COUNT = 8, 24


class Bytes:
    """What the datasets ask of a tokenizer."""

    unique_identifiers = {"class": "Bytes"}  # noqa: RUF012
    vocab_size, eod, pad, eos = 257, 256, -1, 256
    special_tokens_dict: dict[str, int] = {}  # noqa: RUF012


def make(folder: Path, texts: list[str], name: str = "d") -> str:
    """A dataset of these texts, as bytes; returns its prefix."""
    source = folder / f"{name}.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    preprocess(
        PreprocessJob(
            (str(source),), str(folder / name), TokenizerChoice("ByteLevelTokenizer"), append_eod=True, overwrite=True
        )
    )
    return str(folder / f"{name}_text_document")


def replaced(prefix: str, texts: list[str]) -> None:
    """Put another dataset under the prefix without our tools: what lies beside it stays."""
    other = Path(prefix).parent / "elsewhere"
    other.mkdir(exist_ok=True)
    made = make(other, texts)
    for ending in ("bin", "idx", "json"):
        shutil.copyfile(f"{made}.{ending}", f"{prefix}.{ending}")


def samples(cache: Path | None, kind: type[GPTDataset] = ContentDataset, part: int = 0, **named) -> list[list[int]]:
    """The tokens of the samples that a run would read. named: the datasets, as Megatron's configuration takes them."""
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=LENGTH,
        path_to_cache=None if cache is None else str(cache),
        tokenizer=Bytes(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        **named,
    )
    built = BlendedMegatronDatasetBuilder(kind, [COUNT] * 3, lambda: True, config).build()[part]
    return [built[number]["tokens"].tolist() for number in range(min(COUNT, len(built)))]


def one(prefix: str) -> dict:
    return {"blend": ([prefix], None), "split": "1,0,0"}


OLD = ["a" * 9, "b" * 30, "c" * 12, "d" * 21]
NEW = {
    "longer": [*OLD, *("e" * 40, "f" * 7, "g" * 33)],
    "shorter": OLD[:2],
    "another order": OLD[::-1],
    "other lengths, as many": ["w" * 15, "x" * 15, "y" * 15, "z" * 27],
    "the same lengths": [text.upper() for text in OLD],
}


@pytest.mark.parametrize("shared", [False, True], ids=["beside the data", "--data-cache-path"])
@pytest.mark.parametrize("texts", NEW.values(), ids=NEW)
def test_a_replaced_dataset_is_read_in_its_own_order(tmp_path, texts, shared):
    prefix, cache = make(tmp_path, OLD), tmp_path / "cache" if shared else None
    before = samples(cache, **one(prefix))
    replaced(prefix, texts)
    after = samples(cache, **one(prefix))
    assert after == samples(tmp_path / "fresh", **one(prefix)) != before


def test_megatrons_own_keeps_the_old_order(tmp_path):
    """What the class is for; without it the tests above could not fail."""
    prefix = make(tmp_path, OLD)
    samples(None, GPTDataset, **one(prefix))
    replaced(prefix, NEW["longer"])
    assert samples(None, GPTDataset, **one(prefix)) != samples(tmp_path / "fresh", GPTDataset, **one(prefix))


@pytest.mark.parametrize("changed", [0, 1])
@pytest.mark.parametrize("weights", [None, [0.7, 0.3]], ids=["by length", "by weight"])
def test_a_blend_is_read_anew_when_one_of_it_is_replaced(tmp_path, changed, weights):
    prefixes = [make(tmp_path, OLD, "one"), make(tmp_path, NEW["shorter"], "two")]
    blend = {"blend": (prefixes, weights), "split": "1,0,0"}
    before = samples(tmp_path / "cache", **blend)
    replaced(prefixes[changed], NEW["longer"])
    assert samples(tmp_path / "cache", **blend) == samples(tmp_path / "fresh", **blend) != before


@pytest.mark.parametrize("split", [0, 1, 2], ids=["train", "valid", "test"])
def test_each_split_has_its_own_content(tmp_path, split):
    prefixes = [make(tmp_path, OLD, name) for name in ("one", "two", "three")]
    apart = {"blend_per_split": [([prefix], None) for prefix in prefixes]}
    before = samples(tmp_path / "cache", part=split, **apart)
    replaced(prefixes[split], NEW["longer"])
    assert (
        samples(tmp_path / "cache", part=split, **apart) == samples(tmp_path / "fresh", part=split, **apart) != before
    )


def test_two_projects_share_a_cache_folder(tmp_path, monkeypatch):
    """Both name their data by the same relative path."""
    found = []
    for name, texts in (("first", OLD), ("second", NEW["longer"])):
        (tmp_path / name).mkdir()
        make(tmp_path / name, texts)
        monkeypatch.chdir(tmp_path / name)
        found.append(samples(tmp_path / "cache", **one("d_text_document")))
    assert found[1] == samples(tmp_path / "fresh", **one("d_text_document")) != found[0]


def state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*.npy")}


def test_an_unchanged_dataset_keeps_its_indices(tmp_path):
    prefix = make(tmp_path, OLD)
    before = samples(None, **one(prefix))
    kept = state(Path(prefix))
    shutil.copyfile(f"{prefix}.idx", tmp_path / "copy")
    (tmp_path / "copy").replace(f"{prefix}.idx")  # another file of the same content
    assert samples(None, **one(prefix)) == before
    assert len(kept) == 3 and state(Path(prefix)) == kept


@pytest.mark.parametrize("name", ["document_index", "sample_index", "shuffle_index"])
@pytest.mark.parametrize("kept", [0, 100, -8])
def test_indices_that_a_killed_run_was_writing_are_made_again(tmp_path, name, kept):
    prefix = make(tmp_path, OLD)
    before = samples(None, **one(prefix))
    [path] = Path(prefix).rglob(f"*{name}.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    assert samples(None, **one(prefix)) == before
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["dataset_index", "dataset_sample_index"])
@pytest.mark.parametrize("kept", [0, 100, -8])
def test_indices_of_a_blend_that_a_killed_run_was_writing_are_made_again(tmp_path, name, kept):
    prefixes = [make(tmp_path, OLD, "one"), make(tmp_path, OLD[::-1], "two")]
    blend = {"blend": (prefixes, [0.5, 0.5]), "split": "1,0,0"}
    whole = samples(tmp_path / "cache", **blend)
    [path] = (tmp_path / "cache").glob(f"*-BlendedDataset-train-{name}.npy")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises((ValueError, EOFError)):
        samples(tmp_path / "cache", **blend)
    remove_unfinished_blends(str(tmp_path / "cache"))
    assert samples(tmp_path / "cache", **blend) == whole


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    prefix = make(tmp_path, OLD)
    Path(prefix).write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be kept in .*--data-cache-path names a folder"):
        samples(None, **one(prefix))


def test_preprocessing_removes_what_was_kept_of_the_dataset_before(tmp_path):
    prefix, other = make(tmp_path, OLD), make(tmp_path, OLD, "other")
    for name in (prefix, other):
        samples(None, GPTDataset, **one(name))
    make(tmp_path, NEW["longer"])
    assert not Path(prefix).exists() and len(state(Path(other))) == 3


def remade(prefix: str, change: Callable[[np.ndarray], None]) -> None:
    tokens = np.fromfile(f"{prefix}.bin", np.uint16)
    change(tokens)
    tokens.tofile(f"{prefix}.bin")


def _other_words(tokens: np.ndarray) -> None:
    tokens[3] = 99


def test_a_manifest_of_another_dataset_is_reported(tmp_path):
    prefix = make(tmp_path, OLD)
    check_prefix(prefix)
    remade(prefix, _other_words)
    with pytest.raises(UserError, match=r"d_text_document\.json describes another dataset than"):
        check_prefix(prefix)
    job = PreprocessJob(
        (str(tmp_path / "d.jsonl"),), str(tmp_path / "d"), TokenizerChoice("ByteLevelTokenizer"), append_eod=True
    )
    with pytest.raises(UserError, match="other contents than its manifest describes"):
        preprocess(job)


def test_the_digest_is_of_documents_and_tokens(tmp_path):
    prefix = make(tmp_path, OLD)
    whole = content_digest(prefix)
    remade(prefix, _other_words)
    changed = content_digest(prefix)
    replaced(prefix, NEW["another order"])
    assert len({whole, changed, content_digest(prefix)}) == 3


def test_machines_with_other_copies_of_the_data_are_reported():
    votes = [
        {"rank": rank, "host": f"node{rank}", "versions": None, "mark": None, "data": {"d": digest}}
        for rank, digest in enumerate("aab")
    ]
    assert compare_votes(votes[:2], [], None, 1.0) == "agreed"
    assert "dataset d is not the same on node0 and on node2 (rank 2)" in compare_votes(votes, [], None, 1.0)
