"""Raw text as sets of tokens: a set for each domain, and bad documents with file and line."""

import json

import pytest

from megatron_cod.data.evaluation.texts import TextReading, read_texts
from megatron_cod.data.evaluation.token_sets import Source


def bytes_of(text: str) -> list[int]:
    return list(text.encode("utf-8"))


READING = TextReading(bytes_of, 256)
BY_KIND = TextReading(bytes_of, 256, domain_key="kind")


def source_of(tmp_path, records) -> Source:
    path = tmp_path / "dom.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Source("dom.jsonl", str(path))


def test_an_empty_domain_has_a_name_of_its_own(tmp_path):
    """The row of the whole source is named as the source."""
    source = source_of(tmp_path, [{"text": "a", "kind": "web"}, {"text": "bc", "kind": ""}, {"text": "d", "kind": ""}])
    sets = read_texts(source, BY_KIND, print)
    assert [(each.name, each.group, each.documents, each.text_bytes) for each in sets] == [
        ("dom.jsonl/web", "dom.jsonl", 1, 1),
        ("dom.jsonl/(none)", "dom.jsonl", 2, 3),
    ]
    assert [each.name for each in read_texts(source, READING, print)] == ["dom.jsonl"]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"text": "a \ud800", "kind": "web"}, "holds a lone surrogate at character 2, which UTF-8 cannot hold"),
        ({"text": "a", "kind": "\udc00"}, "key 'kind' holds a lone surrogate at character 0, which UTF-8 cannot hold"),
        ({"text": "a"}, "key 'kind' is missing"),
    ],
)
def test_a_bad_document_is_named(tmp_path, record, says):
    source = source_of(tmp_path, [{"text": "a", "kind": "web"}, record])
    with pytest.raises(ValueError) as caught:
        read_texts(source, BY_KIND, print)
    assert f"{source.path}, line 2: {says}" in str(caught.value)
