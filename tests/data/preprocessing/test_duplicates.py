from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_cod.data.preprocessing import duplicates
from megatron_cod.data.preprocessing.encode import digest_of
from megatron_cod.data.preprocessing.token_runs import Run, RunWriter


def write_runs(folder: Path, texts: list[str], size: int, seed: int | None) -> list[Run]:
    runs = []
    for start in range(0, len(texts), size):
        writer = RunWriter(folder, start, 0, keys=1, item=2, seed=seed)
        for place, text in enumerate(texts[start : start + size]):
            digest, _ = digest_of([text])
            writer.add(0, start + place, digest, [b"xx"], [1])
        runs.append(Run(folder, start, 0, writer.commit(None, 0)))
    return runs


@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize("at_once", [1 << 21, 16])
def test_all_but_the_first_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, seed: int | None
) -> None:
    """Whether hashes fit into memory or are dealt out to many files, and whether runs are shuffled."""
    monkeypatch.setattr(duplicates, "_AT_ONCE", at_once)
    generator = np.random.default_rng(1)
    texts = [str(number) for number in generator.integers(0, 150, 300)]
    (tmp_path / "runs").mkdir()
    runs = write_runs(tmp_path / "runs", texts, 40, seed)
    for documents in (300, 100):
        seen: set[str] = set()
        expected = []
        for text in texts[:documents]:
            expected.append(text in seen)
            seen.add(text)
        marks = duplicates.mark_duplicates(runs, documents, tmp_path / f"plan{documents}")
        assert marks.tolist() == expected
        assert sum(expected) > 10


def test_both_halves_of_a_hash_count(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, 0, 0, keys=1, item=2, seed=None)
    for place, digest in enumerate([b"a" * 16, b"a" * 8 + b"b" * 8, b"b" * 8 + b"a" * 8, b"a" * 16]):
        writer.add(0, place, digest, [b"xx"], [1])
    run = Run(tmp_path, 0, 0, writer.commit(None, 0))
    assert duplicates.mark_duplicates([run], 4, tmp_path / "plan").tolist() == [0, 0, 0, 1]


def test_hash_depends_on_the_key_of_each_text() -> None:
    assert digest_of(["ab", "c"])[0] != digest_of(["a", "bc"])[0]
    assert digest_of(["a", ""])[0] != digest_of(["", "a"])[0]
    long = "x\u00e9" * 2_000_000
    assert digest_of([long]) == (digest_of([long[:1] + long[1:]])[0], [6_000_000])
