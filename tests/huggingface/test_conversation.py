"""A conversation with a model (``generate --chat`` without a prompt): streamed, remembered, interrupted."""

import io

import pytest

from megatron_cod.cli import generate as command
from megatron_cod.errors import UserError
from megatron_cod.huggingface import generation
from megatron_cod.huggingface.generation import ByteTokenizer, Chat, answer, open_directory
from tests.huggingface.models import MODELS, make_model

TEMPLATE = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}<a>"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    MODELS["bytes"] = ("LlamaForCausalLM", {"vocab_size": 257, "max_position_embeddings": 128})
    try:
        make_model("bytes", folder / "hf")
    finally:
        del MODELS["bytes"]
    return open_directory(folder / "hf")[0]


def chat(model, count=12):
    return Chat(model, ByteTokenizer(TEMPLATE), count)


def test_parts_are_the_answer(model):
    talk = chat(model)
    parts = list(talk.answer("Hello"))
    assert "".join(parts) == answer(model, ByteTokenizer(TEMPLATE), "Hello", 12) and len(parts) > 1
    assert talk.messages == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "".join(parts)},
    ]


def test_a_character_of_several_bytes_is_shown_whole(model, monkeypatch):
    monkeypatch.setattr(generation, "next_tokens", lambda *_: iter("a\u00e9\u20ac".encode()))
    assert list(chat(model).answer("x")) == ["a", "\u00e9", "\u20ac"]
    monkeypatch.setattr(generation, "next_tokens", lambda *_: iter("a\u20ac".encode()[:-1]))
    assert list(chat(model).answer("x")) == ["a", "\ufffd"]


def test_earlier_messages_are_part_of_the_prompt(model, monkeypatch):
    prompts = []

    def recorded(_model, ids, *_):
        prompts.append(bytes(ids).decode())
        return iter(b"yes")

    monkeypatch.setattr(generation, "next_tokens", recorded)
    talk = chat(model)
    for question in ("one", "two"):
        list(talk.answer(question))
    assert prompts == ["<u>one<a>", "<u>one<a>yes<u>two<a>"]


def test_an_interrupted_answer_is_kept_as_far_as_it_was(model, monkeypatch):
    def interrupted(*_):
        yield from b"ab"
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "next_tokens", interrupted)
    talk = chat(model)
    with pytest.raises(KeyboardInterrupt):
        list(talk.answer("x"))
    assert talk.messages[-1] == {"role": "assistant", "content": "ab"}


def test_too_long_a_conversation_changes_nothing(model):
    talk = chat(model)
    with pytest.raises(UserError, match="the prompt is 206 tokens; it must be from 1 to 127"):
        list(talk.answer("x" * 200))
    assert talk.messages == []


def test_command_answers_each_line(model, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n/new\nthree\n" + "x" * 200 + "\n"))
    prompts = []

    def recorded(_model, ids, *_):
        prompts.append(bytes(ids).decode())
        if len(ids) > 100:
            raise UserError("too long")
        yield from b"yes"

    monkeypatch.setattr(generation, "next_tokens", recorded)
    command._converse(chat(model))
    out, err = capsys.readouterr()
    assert out == "yes\nyes\nyes\n" and err == "error: too long; /new begins another conversation\n"
    assert prompts[:3] == ["<u>one<a>", "<u>one<a>yes<u>two<a>", "<u>three<a>"]


def test_a_prompt_is_needed_without_chat(monkeypatch):
    monkeypatch.setattr("sys.argv", ["generate", "--model", "nowhere"])
    with pytest.raises(UserError, match="give a prompt, or --chat"):
        command.main()
