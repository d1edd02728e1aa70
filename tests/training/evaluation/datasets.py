"""Data to evaluate on: real sentences, and datasets as other tools write them."""

import json

import numpy as np

from megatron_cod.data.sample_corpus import sample_corpus_path

EOD = 256


def write_dataset(prefix, documents: list[np.ndarray]) -> None:
    """A ``.bin/.idx`` without a record, as other tools write them."""
    from megatron_cod.data.megatron_api import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for ids in documents:
        builder.add_document(np.asarray(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")


def sentences() -> list[str]:
    """Real sentences, of a few to a few hundred bytes."""
    text = json.loads(sample_corpus_path().read_text().splitlines()[5])["text"]
    return [part.strip() + "." for part in text.split(".") if len(part.strip()) > 3]
