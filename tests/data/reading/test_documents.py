from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cod.data.reading.documents import cut, cut_documents, seek_line, text_of_plain, texts_of_json

lines = st.lists(st.sampled_from([b"", b"  ", b"\t", b"one", b" two words ", b"\xc3\xa9", b"three"]))


def documents_of(content: bytes, split_on: str) -> list[tuple[int, bytes]]:
    return list(cut_documents(io.BytesIO(content), split_on))


@given(lines, st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_blank_lines_separate_and_every_other_line_survives(parts: list[bytes], end: bytes, closed: bool) -> None:
    content = end.join(parts) + (end if closed else b"")
    documents = [document for _, document in documents_of(content, "blank-line")]
    assert all(line.strip() for document in documents for line in document.splitlines())
    assert all(documents)
    kept = [line for document in documents for line in document.splitlines()]
    assert kept == [line for line in parts if line.strip()]
    groups = "".join("x" if line.strip() else " " for line in parts).split()
    assert [len(document.splitlines()) for document in documents] == [len(group) for group in groups]


@given(lines)
def test_documents_carry_the_number_of_their_first_line(parts: list[bytes]) -> None:
    for number, document in documents_of(b"\n".join(parts), "blank-line"):
        assert document.split(b"\n")[0] == parts[number - 1]


@given(lines)
def test_one_a_line_keeps_all_lines(parts: list[bytes]) -> None:
    documents = documents_of(b"".join(part + b"\n" for part in parts), "line")
    assert documents == list(enumerate(parts, start=1))


@given(lines)
def test_a_file_is_one_document(parts: list[bytes]) -> None:
    content = b"\n".join(parts)
    assert documents_of(content + b"\n", "file") == [(1, content)]


def read_apart(content: bytes, split_on: str, bounds: list[int]) -> list[list[tuple[int, bytes]]]:
    """What readers of neighbouring ranges of bytes find: places and documents of each."""
    found = []
    for start, end in zip([0, *bounds], [*bounds, None], strict=True):
        stream = io.BytesIO(content)
        place = seek_line(stream, start)
        found.append([(each.place, each.content) for each in cut(stream, split_on, place, end, start == 0)])
    return found


@given(lines, st.sampled_from(["line", "blank-line"]), st.lists(st.integers(1, 60), max_size=4), st.booleans())
def test_ranges_of_a_file_hold_each_document_once(
    parts: list[bytes], split_on: str, bounds: list[int], closed: bool
) -> None:
    content = b"\n".join(parts) + (b"\n" if closed else b"")
    bounds = sorted(min(bound, max(len(content), 1)) for bound in bounds)
    whole = read_apart(content, split_on, [])[0]
    assert [document for found in read_apart(content, split_on, bounds) for document in found] == whole
    for place, document in whole:
        assert content[place:].startswith(document)


@given(lines, st.sampled_from(["line", "blank-line"]), st.integers(1, 40))
@settings(max_examples=300)
def test_reading_resumes_where_it_was_broken_off(parts: list[bytes], split_on: str, end: int) -> None:
    content = b"\n".join(parts)
    first = list(cut(io.BytesIO(content), split_on, 0, end, True))
    for stop, document in enumerate(first):
        rest = []
        if document.after is not None:
            stream = io.BytesIO(content)
            rest = list(cut(stream, split_on, seek_line(stream, document.after), end, True))
        assert [(each.place, each.content) for each in rest] == [
            (each.place, each.content) for each in first[stop + 1 :]
        ]


def test_byte_order_mark_is_no_text() -> None:
    assert documents_of(b"\xef\xbb\xbfone\n", "line") == [(1, b"one")]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "not JSON: Expecting property name"),
        (b'{"text": "a', "not JSON: Unterminated string starting at column 10"),
        (b"[1]", "needs a JSON object on each line, found a list"),
        (b'{"body": "x", "id": 1}', "no key 'text' (keys here: body, id); choose with --json-keys"),
        (b'{"text": 5}', "key 'text' holds a int, not a string"),
        (b'{"text": null}', "key 'text' holds a NoneType, not a string"),
        (b'{"text": "\xff"}', "not UTF-8: byte 0xff at offset 10"),
        (b"[" * 100000, "nested too deeply"),
    ],
)
def test_bad_json_is_named_with_its_reason(line: bytes, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        texts_of_json(line, ["text"])
    assert says in str(caught.value)


def test_plain_text_must_be_utf8() -> None:
    with pytest.raises(ValueError, match="not UTF-8: byte 0xe9 at offset 3"):
        text_of_plain("caf\xe9".encode("latin-1"))


@pytest.mark.slow
@given(st.text())
def test_json_text_comes_back(text: str) -> None:
    assert texts_of_json(json.dumps({"a": 1, "text": text}).encode(), ["text"]) == [text]
