"""Reading conversations: layouts, lengths, what is omitted and counted, and every bad line named."""

import gzip
import json

import numpy as np
import pytest

from megatron_cod.data.chat.chat_format import chat_format_of
from megatron_cod.data.chat.conversations import BadLine, read_conversations
from megatron_cod.data.chat.samples import Reading, held_out, read_samples
from megatron_cod.data.chat.templates import BUILT_IN
from tests.data.chat.toys import hugging_face_tokenizer, sentencepiece_model

QUESTION, ANSWER = {"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}
BYTES = chat_format_of("NullTokenizer", None, 257, "raw")


def write(path, records) -> str:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records))
    return str(path)


LAYOUTS = {
    "messages": {"messages": [QUESTION, ANSWER], "id": 7},
    "prompt": {"prompt": "a b", "completion": "c"},
    "instruction": {"instruction": "a b", "output": "c"},
    "instruction with no input": {"instruction": "a b", "input": "", "output": "c", "answer": "other"},
}


@pytest.mark.parametrize("record", LAYOUTS.values(), ids=LAYOUTS)
def test_layout_is_recognised_by_its_keys(tmp_path, record):
    [found] = read_conversations([write(tmp_path / "x.jsonl", [record])])
    assert found.messages == [QUESTION, ANSWER]


def test_an_input_follows_the_instruction(tmp_path):
    [found] = read_conversations([write(tmp_path / "x.jsonl", [{"instruction": "a", "input": "b", "output": "c"}])])
    assert found.messages[0]["content"] == "a\n\nb"


def test_a_named_layout_wins_over_the_keys(tmp_path):
    both = {**LAYOUTS["messages"], "prompt": "x", "completion": "y"}
    path = write(tmp_path / "x.jsonl", [both])
    assert next(iter(read_conversations([path]))).messages == [QUESTION, ANSWER]
    assert next(iter(read_conversations([path], "prompt"))).messages[0]["content"] == "x"


def test_a_json_list_blank_lines_and_compression(tmp_path):
    """Commonsense170K is one JSON list over many lines."""
    records = [LAYOUTS["prompt"], LAYOUTS["messages"]]
    (tmp_path / "list.json").write_text(json.dumps(records, indent=2))
    with gzip.open(tmp_path / "lines.jsonl.gz", "wt") as file:
        file.write("\n" + json.dumps(records[0]) + "\n\n" + json.dumps(records[1]))
    found = list(read_conversations([str(tmp_path / "list.json"), str(tmp_path / "*.gz")]))
    assert [one.messages for one in found] == [[QUESTION, ANSWER]] * 4
    assert [one.place.rsplit("/")[-1] for one in found] == [
        *("list.json, item 1", "list.json, item 2", "lines.jsonl.gz:2", "lines.jsonl.gz:4")
    ]


BAD = {
    "broken JSON": ('{"prompt": "a"', "not JSON: Expecting ',' delimiter"),
    "no object": ('"text"', "needs a JSON object, found a str"),
    "unknown keys": ({"question": "a"}, r"none of the known layouts \(keys here: question\): messages, or prompt and"),
    "unknown role": (
        {"messages": [{"role": "bot", "content": "a"}]},
        "message 1 has the role 'bot'; there are system, user",
    ),
    "no content": (
        {"messages": [QUESTION, {"role": "assistant"}]},
        r"message 2 \(assistant\) has no text in 'content'",
    ),
    "no messages": ({"messages": []}, "key 'messages' must hold a list of"),
    "message is text": ({"messages": ["a"]}, "message 1 is a str, not an object"),
    "user last": ({"messages": [QUESTION, ANSWER, QUESTION]}, "the last message is the user's: there is no answer"),
    "empty answer": ({"prompt": "a", "completion": " \n"}, "an answer is empty: there is no token to train on"),
    "number": ({"prompt": "a", "completion": 3}, "key 'completion' holds a int, not a string"),
    "input is a list": ({"instruction": "a", "input": [], "output": "c"}, "key 'input' holds a list"),
    "input is a number": ({"instruction": "a", "input": 3, "output": "c"}, "key 'input' holds a int"),
}


@pytest.mark.parametrize(("line", "said"), BAD.values(), ids=BAD)
def test_a_bad_line_is_named(tmp_path, line, said):
    path = write(tmp_path / "x.jsonl", [LAYOUTS["prompt"], line])
    with pytest.raises(BadLine, match=rf"x\.jsonl:2: {said}"):
        list(read_conversations([path]))


def test_a_missing_key_of_a_named_layout(tmp_path):
    with pytest.raises(BadLine, match=r"x.jsonl:1: no key 'completion' \(keys here: prompt\)"):
        list(read_conversations([write(tmp_path / "x.jsonl", [{"prompt": "a"}])], "prompt"))


def test_invalid_utf8_and_a_broken_list(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(BadLine, match=r"x.jsonl:1: not UTF-8: byte 0xff at offset 12"):
        list(read_conversations([str(tmp_path / "x.jsonl")]))
    (tmp_path / "y.json").write_text("[{}\n")
    with pytest.raises(BadLine, match=r"y.json: begins as a JSON list, but is none"):
        list(read_conversations([str(tmp_path / "y.json")]))


def test_file_given_twice_is_read_once(tmp_path):
    path = write(tmp_path / "x.jsonl", [LAYOUTS["prompt"]])
    said: list[str] = []
    samples, _ = read_samples(
        [path, str(tmp_path / "." / ".." / tmp_path.name / "x.jsonl")], BYTES, Reading(8), said.append
    )
    assert len(samples) == 1 and "x.jsonl again)" in said[0]


def test_bad_lines_are_skipped_and_counted(tmp_path):
    path = write(tmp_path / "x.jsonl", ["{", LAYOUTS["prompt"], {"prompt": "a", "completion": ""}])
    samples, counts = read_samples([path], BYTES, Reading(8, skip_bad=True))
    assert len(samples) == 1 and counts.bad == 2
    assert "x.jsonl:1: not JSON" in counts.shown[0] and "x.jsonl:3: an answer is empty" in counts.shown[1]


def conversations(tmp_path, *lengths) -> str:
    """Each: a question of 3 bytes, and an answer of so many, end token included."""
    return write(tmp_path / "x.jsonl", [{"prompt": "abc", "completion": "x" * (n - 1)} for n in lengths])


def test_counts_conversations_that_are_too_long(tmp_path):
    with pytest.raises(
        ValueError, match=r"2 of 4 conversations do not fit into --seq-length 8, the longest takes 11 .*:4\)"
    ):
        read_samples([conversations(tmp_path, 6, 7, 3, 9)], BYTES, Reading(8))


def test_accepts_conversation_of_exact_length(tmp_path):
    """Nine tokens take eight positions: the last is only a label."""
    samples, counts = read_samples([conversations(tmp_path, 6)], BYTES, Reading(8))
    assert samples.positions().tolist() == [8] and counts.longest == 8 and samples.answer_tokens() == 6


def test_truncating_and_dropping_are_counted(tmp_path):
    path = write(
        tmp_path / "x.jsonl", [{"prompt": p, "completion": c} for p, c in [("a", "b"), ("ab", "c" * 9), ("a" * 9, "b")]]
    )
    samples, counts = read_samples([path], BYTES, Reading(8, too_long="truncate"))
    assert (counts.kept, counts.truncated, counts.dropped) == (2, 1, 1)
    ids, trained = samples[1]
    assert bytes(ids.tolist()) == b"abccccccc" and trained.tolist() == [False] * 2 + [True] * 7
    samples, counts = read_samples([path], BYTES, Reading(8, too_long="drop"))
    assert (counts.kept, counts.truncated, counts.dropped) == (1, 0, 2)


def test_rejects_data_without_conversations(tmp_path):
    with pytest.raises(ValueError, match=r"no conversation is left to train on \(2 too long, 0 bad\)"):
        read_samples([conversations(tmp_path, 9, 10)], BYTES, Reading(4, too_long="drop"))
    with pytest.raises(ValueError, match=r"does not exist"):
        read_samples([str(tmp_path / "nowhere.jsonl")], BYTES, Reading(8))


def test_a_template_error_names_the_line(tmp_path):
    chat = chat_format_of("NullTokenizer", None, 257, "raw")
    path = tmp_path / "strict.jinja"
    path.write_text("{{ raise_exception('no system here') if messages[0]['role'] == 'system' }}" + chat.template.text)
    strict = chat_format_of("NullTokenizer", None, 257, str(path))
    data = write(tmp_path / "x.jsonl", [LAYOUTS["prompt"], {"messages": [{"role": "system", "content": "s"}, ANSWER]}])
    with pytest.raises(ValueError, match=r"x.jsonl:2: the chat template failed: no system here"):
        read_samples([data], strict, Reading(8))


@pytest.mark.parametrize("template", BUILT_IN)
def test_no_built_in_template_drops_a_message(tmp_path, template):
    """A system message may stand anywhere: it is in the text, or the line is bad."""
    chat = chat_format_of("NullTokenizer", None, 257, template)
    system = {"role": "system", "content": "be brief"}
    for place in range(3):
        messages = [QUESTION, ANSWER, QUESTION, ANSWER]
        messages.insert(place, system)
        data = write(tmp_path / "x.jsonl", [{"messages": messages}])
        if template == "alpaca" and place:
            said = r"x\.jsonl:1: the chat template failed: alpaca has a place for a system message at the start only"
            with pytest.raises(BadLine, match=said):
                read_samples([data], chat, Reading(512))
        else:
            [ids] = [sample[0] for sample in read_samples([data], chat, Reading(512))[0]]
            text = "".join(chr(number) for number in ids if number < 256)
            assert [text.count(each["content"]) for each in (system, QUESTION)] == [1, 2]


def test_the_held_out_share_goes_by_content(tmp_path):
    records = [{"prompt": str(n), "completion": str(n * n)} for n in range(400)]
    one, _ = read_samples([write(tmp_path / "x.jsonl", records)], BYTES, Reading(16))
    other, _ = read_samples([write(tmp_path / "y.jsonl", records[::-1] + records[:50])], BYTES, Reading(16))
    splits = [held_out(samples, 0.1) for samples in (one, other)]
    as_sets = [[{part[n][0].tobytes() for n in range(len(part))} for part in split] for split in splits]
    assert as_sets[0] == as_sets[1] and not as_sets[0][0] & as_sets[0][1]
    assert 20 < len(splits[0][1]) < 60
    assert len(splits[1][0]) + len(splits[1][1]) == 450
    assert np.array_equal(one.part([3]).ids, one[3][0])


ENCODERS = {
    "bytes": lambda folder: ("NullTokenizer", None, 257, "raw"),
    "sentencepiece": lambda folder: ("SentencePieceTokenizer", str(sentencepiece_model(folder)), None, "raw"),
    "huggingface": lambda folder: ("HuggingFaceTokenizer", str(hugging_face_folder(folder)), None, "raw"),
}


def hugging_face_folder(folder):
    hugging_face_tokenizer(folder / "hf")
    return folder / "hf"


@pytest.mark.parametrize("asked", ENCODERS.values(), ids=ENCODERS)
def test_half_a_surrogate_pair_is_a_bad_line_for_every_tokenizer(tmp_path, asked):
    """No tokenizer can be given one: of those here one raises TypeError, one RuntimeError, and bytes became no UTF-8."""
    chat = chat_format_of(*asked(tmp_path))
    half = '{"prompt": "a \\ud800", "completion": "b"}'
    path = write(tmp_path / "x.jsonl", [LAYOUTS["prompt"], half])
    with pytest.raises(BadLine, match=r"x\.jsonl:2: message 1 \(user\) holds a lone surrogate at character 2, which"):
        read_samples([path], chat, Reading(32))
    samples, counts = read_samples([path], chat, Reading(32, skip_bad=True))
    assert len(samples) == 1 and counts.bad == 1 and "x.jsonl:2" in counts.shown[0]
    whole = write(tmp_path / "y.jsonl", ['{"prompt": "a \\ud83d\\ude00", "completion": "b"}'])
    assert len(read_samples([whole], chat, Reading(32))[0]) == 1


def test_half_a_surrogate_pair_from_another_key_that_a_template_reads(tmp_path):
    path = tmp_path / "named.jinja"
    path.write_text("{{ messages[0]['name'] }}" + BYTES.template.text)
    named = chat_format_of("NullTokenizer", None, 257, str(path))
    messages = [{**QUESTION, "name": "b\ud800"}, ANSWER]
    data = write(tmp_path / "x.jsonl", [json.dumps({"messages": messages})])
    with pytest.raises(
        BadLine, match=r"x\.jsonl:1: what the chat template writes holds a lone surrogate at character 1"
    ):
        read_samples([data], named, Reading(32))
