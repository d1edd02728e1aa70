"""Chat data as it is published: every layout, what is trained of it, and what nothing reads."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from megatron_cod.data.chat.chat_format import ChatFormat, chat_format_of
from megatron_cod.data.chat.conversations import BadLine, read_conversations
from megatron_cod.data.chat.encoders import ByteEncoder
from megatron_cod.data.chat.samples import Reading, read_samples
from megatron_cod.training.fine_tuning.data import _described
from tests.data.chat.toys import CHATML, CHATML_UNMARKED

BYTES = chat_format_of("NullTokenizer", None, 257, "raw")
MARKED, UNMARKED = (ChatFormat(ByteEncoder(), text) for text in (CHATML, CHATML_UNMARKED))
SYSTEM, USER, ANSWER = (
    {"role": role, "content": text} for role, text in (("system", "kind"), ("user", "hi"), ("assistant", "hello"))
)
CALL = {"name": "f", "arguments": {"x": 1}}
WRITTEN = {"name": "f", "arguments": '{"x": 1}'}


def write(path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(tmp_path, *records, **named):
    return list(read_conversations([write(tmp_path / "x.jsonl", records)], **named))


def said(role, text):
    return {"from": role, "value": text}


SAME = {
    "ShareGPT": {"conversations": [said("system", "kind"), said("human", "hi"), said("gpt", "hello")]},
    "conversations of roles": {"conversations": [SYSTEM, USER, ANSWER]},
    "messages of ShareGPT's keys": {"messages": [said("system", "kind"), said("human", "hi"), said("gpt", "hello")]},
    "the system's text apart": {"system": "kind", "conversations": [said("human", "hi"), said("chatgpt", "hello")]},
    "Alpaca with a system": {"system": "kind", "instruction": "hi", "output": "hello"},
    "parts": {"messages": [SYSTEM, {**USER, "content": [{"type": "text", "text": "h"}, {"text": "i"}]}, ANSWER]},
    "parts that are texts": {"messages": [SYSTEM, {**USER, "content": ["h", "i"]}, ANSWER]},
    "prompt and completion of messages": {"prompt": [SYSTEM, USER], "completion": [ANSWER]},
    "completion of messages": {"system": "kind", "prompt": "hi", "completion": [ANSWER]},
    "prompt of messages": {"prompt": [SYSTEM, USER], "completion": "hello"},
    "a list as JSON text": {"messages": json.dumps([SYSTEM, USER, ANSWER])},
    "nulls of a table": {"messages": [{**SYSTEM, "weight": None, "tool_calls": None}, USER, ANSWER], "tools": None},
    "weights of 1": {"messages": [SYSTEM, USER, {**ANSWER, "weight": 1}], "weight": 1},
}


@pytest.mark.parametrize("record", SAME.values(), ids=SAME)
def test_published_layouts_are_read(tmp_path, record):
    [found] = read(tmp_path, record)
    assert found.messages == [SYSTEM, USER, ANSWER]
    assert not found.chat.unread and not found.chat.for_templates


def test_earlier_turns_of_alpaca(tmp_path):
    [found] = read(tmp_path, {"history": [["a", "b"]], "instruction": "c", "output": "d"})
    assert [message["content"] for message in found.messages] == ["a", "b", "c", "d"]


CALLS = {
    "OpenAI": {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": WRITTEN}]},
    "no content": {"tool_calls": [{"type": "function", "function": CALL}]},
    "as JSON text": {"content": None, "tool_calls": json.dumps([{"function": WRITTEN}])},
    "the call alone": {"content": "", "tool_calls": [CALL]},
    "OpenAI's older": {"content": None, "function_call": WRITTEN},
}


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
def test_calls_of_tools_are_read(tmp_path, calls):
    result = {"role": "tool", "tool_call_id": "1", "content": "sun"}
    [found] = read(tmp_path, {"messages": [USER, {"role": "assistant", **calls}, result, ANSWER]})
    [call] = found.messages[1]["tool_calls"]
    assert call["function"] == CALL and found.messages[1]["content"] == ""
    text, spans = BYTES.answers(found.messages)
    assert [text[slice(*span)] for span in spans] == ['f({"x": 1})<eod>', "hello<eod>"]


def test_calls_as_sharegpt_has_them(tmp_path):
    turns = [
        said("human", "hi"),
        said("function_call", json.dumps(CALL)),
        said("observation", "sun"),
        said("gpt", "hello"),
    ]
    [found] = read(tmp_path, {"conversations": turns})
    assert [message["role"] for message in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.messages[1]["tool_calls"][0]["function"] == CALL


def test_a_template_that_writes_no_calls_does_not_lose_them(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, ANSWER]}])
    for chat in (MARKED, UNMARKED):
        with pytest.raises(
            BadLine, match=r"x\.jsonl:1: an answer calls a tool, and the chat template writes no 'tool_calls'"
        ):
            read_samples([path], chat, Reading(200))


def test_tools_are_given_to_the_template(tmp_path):
    chat = ChatFormat(ByteEncoder(), "{{ tools[0].name if tools }}|" + CHATML)
    path = write(tmp_path / "x.jsonl", [{"messages": [USER, ANSWER], "tools": json.dumps([{"name": "look"}])}])
    _, counts = read_samples([path], chat, Reading(200))
    assert counts.first.startswith("look|") and not counts.unread
    _, counts = read_samples([path], MARKED, Reading(200))
    assert counts.unread == {"'tools'": 1}


TURNS = [USER, {**ANSWER, "content": "five"}, USER, {**ANSWER, "content": "four"}]


def answers(chat, messages) -> list[str]:
    text, spans = chat.answers(messages)
    return [text[slice(*span)].split("<")[0] for span in spans]


@pytest.mark.parametrize("chat", [BYTES, MARKED, UNMARKED], ids=["built in", "marked", "by turns"])
@pytest.mark.parametrize(
    "switch", [{"weight": 0}, {"weight": 0.0}, {"loss": False}, {"train": False}, {"training": 0}, {"trainable": False}]
)
@pytest.mark.parametrize("number", [1, 3])
def test_an_answer_that_is_switched_off_is_not_trained(tmp_path, chat, switch, number):
    turns = [one | switch if place == number else one for place, one in enumerate(TURNS)]
    [found] = read(tmp_path, {"messages": turns})
    assert answers(chat, found.messages) == [{1: "four", 3: "five"}[number]]
    ids, trained = chat.encode(found.messages)
    assert ids == chat.encode(TURNS)[0] and 0 < sum(trained) < sum(chat.encode(TURNS)[1])


def test_a_marked_template_with_several_parts_an_answer(tmp_path):
    template = CHATML.replace(
        "{% generation %}{{ message['content']",
        "{% generation %}({% endgeneration %}{% generation %}{{ message['content']",
    )
    chat = ChatFormat(ByteEncoder(), template)
    [found] = read(tmp_path, {"messages": [TURNS[0], {**TURNS[1], "weight": 0}, *TURNS[2:]]})
    assert len(chat.answers(TURNS)[1]) == 4 and answers(chat, found.messages) == ["(", "four"]


def test_answers_of_a_prompt_are_context(tmp_path):
    [found] = read(tmp_path, {"prompt": TURNS[:3], "completion": TURNS[3:]})
    assert answers(MARKED, found.messages) == ["four"]


REFUSED = {
    "no answer left": ({"messages": [USER, {**ANSWER, "weight": 0}]}, "no answer is to be trained"),
    "half a weight": ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, r"\(assistant\) has 'weight' 0.5"),
    "a weight as text": ({"messages": [USER, {**ANSWER, "weight": "0"}]}, "has 'weight' '0'"),
    "contradiction": ({"messages": [USER, {**ANSWER, "weight": 1, "loss": False}]}, "'weight' and 'loss' contradict"),
    "a question": ({"messages": [{**USER, "weight": 1}, ANSWER]}, "only answers can be trained"),
    "a record's weight": ({"prompt": "a", "completion": "b", "weight": 0}, "key 'weight' holds 0"),
    "an image": ({"messages": [{**USER, "content": [{"type": "image_url"}]}, ANSWER]}, "part of type 'image_url'"),
    "null and no call": ({"messages": [USER, {**ANSWER, "content": None}]}, "has no text in 'content'"),
    "two systems": ({"system": "a", "messages": [SYSTEM, USER, ANSWER]}, "are both the system's"),
    "a call without a name": ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "a tool without a name"),
    "a broken list": ({"messages": "[{"}, "begins as a JSON list, but is none"),
}


@pytest.mark.parametrize(("record", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_as_it_says_is_refused(tmp_path, record, text):
    with pytest.raises(BadLine, match=rf"x\.jsonl:1: .*{text}"):
        read(tmp_path, record)


def test_keys_that_nothing_reads_are_counted_and_named(tmp_path):
    odd = {"messages": [USER, {**ANSWER, "mask": 1, "thinking": "hm"}], "id": 3, "source": "web", "rejected": "no"}
    path = write(
        tmp_path / "x.jsonl", [odd, odd, {"prompt": "a", "completion": "b", "chosen": "c", "system_prompt": "d"}]
    )
    samples, counts = read_samples([path], BYTES, Reading(200))
    assert counts.unread == {
        "'rejected'": 2,
        "'mask' of a message": 2,
        "'thinking' of a message": 2,
        "'chosen'": 1,
        "'system_prompt'": 1,
    }
    [line] = [line for line in _described("training data", samples, counts).splitlines() if "not read" in line]
    assert (
        "in 3 conversations: 'mask' of a message in 2, 'rejected' in 2, 'thinking' of a message in 2, 'chosen' in 1"
        in line
    )
    chat = ChatFormat(ByteEncoder(), BYTES.template.text + "{{ messages[0].thinking }}{# mask #}")
    assert set(read_samples([path], chat, Reading(200))[1].unread) == {"'rejected'", "'chosen'", "'system_prompt'"}


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.data", "x.jsonl"])
def test_tables_are_read_whatever_their_name(tmp_path, name):
    other = {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]}
    table = pa.Table.from_pylist([{"messages": [SYSTEM, USER, ANSWER]}, other])
    path = tmp_path / name
    if name.endswith("arrow"):
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    else:
        pyarrow.parquet.write_table(table, path)
    first, second = read_conversations([str(path)])
    assert first.messages == [SYSTEM, USER, ANSWER] and first.place == f"{path}, row 1"
    assert answers(MARKED, second.messages) == ["hello"]


def test_a_bad_row_of_a_table_is_named(tmp_path):
    pyarrow.parquet.write_table(pa.table({"messages": [[USER, ANSWER], [USER]]}), tmp_path / "x.parquet")
    with pytest.raises(BadLine, match=r"x\.parquet, row 2: the last message is the user's"):
        list(read_conversations([str(tmp_path / "x.parquet")]))


def test_a_damaged_table_is_one_line(tmp_path):
    (tmp_path / "x.data").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="cannot be read as"):
        list(read_conversations([str(tmp_path / "x.data")]))
