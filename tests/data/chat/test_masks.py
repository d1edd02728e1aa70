"""Which tokens are trained: transformers' own masks where a template is marked, a direct construction where it is not."""

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from transformers import AutoTokenizer

from megatron_cod.data.chat import encoders
from megatron_cod.data.chat.chat_format import ChatFormat, chat_format_of
from megatron_cod.data.chat.encoders import HuggingFaceEncoder
from megatron_cod.data.chat.rows import filled
from megatron_cod.data.chat.samples import Samples
from megatron_cod.data.chat.templates import BUILT_IN, ChatTemplate
from megatron_cod.data.tokenizers.choice import TokenizerChoice
from tests.data.chat.toys import CHAT, CHATML, CHATML_UNMARKED, hugging_face_tokenizer, sentencepiece_model

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_end|>\n\n' + "
    "message['content'] | trim + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return hugging_face_tokenizer(tmp_path_factory.mktemp("hf"))


def trained_text(tokenizer, ids, trained) -> list[str]:
    """The trained parts, decoded, one for each stretch."""
    parts: list[list[int]] = []
    for place, (number, mine) in enumerate(zip(ids, trained, strict=True)):
        if mine and not (place and trained[place - 1]):
            parts.append([])
        if mine:
            parts[-1].append(number)
    return [tokenizer.decode(part) for part in parts]


def test_a_marked_template_has_transformers_own_mask(tokenizer):
    theirs = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    ids, trained = ChatFormat(HuggingFaceEncoder(tokenizer), CHATML).encode(CHAT)
    assert ids == theirs["input_ids"]
    assert [int(mine) for mine in trained] == theirs["assistant_masks"]
    assert 0 < sum(trained) < len(trained) / 2


def test_a_mask_shifted_by_one_is_not_it(tokenizer, monkeypatch):
    """The comparison above can fail."""
    right = ChatTemplate.with_answers

    def shifted(self, messages, tools=()):
        text, spans = right(self, messages, tools)
        return text, [(start + 1, end + 1) for start, end in spans]

    monkeypatch.setattr(ChatTemplate, "with_answers", shifted)
    with pytest.raises(AssertionError):
        test_a_marked_template_has_transformers_own_mask(tokenizer)


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (CHATML_UNMARKED, [" Strong, na\u00efve \u20ac, and\ngrowing. <|im_end|>", "The people are strong.<|im_end|>"]),
        (LLAMA3, ["Strong, na\u00efve \u20ac, and\ngrowing.<|endoftext|>", "The people are strong.<|endoftext|>"]),
        (MISTRAL, ["  Strong, na\u00efve \u20ac, and\ngrowing. <|endoftext|>", " The people are strong.<|endoftext|>"]),
    ],
    ids=["chatml", "llama3", "mistral"],
)
def test_an_unmarked_template_gives_the_answers_and_their_ends(tokenizer, template, answers):
    """Direct: ids of the text in one piece, of which the answers up to their end-of-turn tokens are trained."""
    chat = ChatFormat(HuggingFaceEncoder(tokenizer), template)
    ids, trained = chat.encode(CHAT)
    assert ids == tokenizer.apply_chat_template(CHAT, chat_template=template)["input_ids"]
    assert trained_text(tokenizer, ids, trained) == answers


def test_the_unmarked_mask_is_the_marked_one(tokenizer):
    encoder = HuggingFaceEncoder(tokenizer)
    assert ChatFormat(encoder, CHATML_UNMARKED).encode(CHAT) == ChatFormat(encoder, CHATML).encode(CHAT)


def test_white_space_behind_an_answer_without_end_token_stays(tokenizer):
    """There it is all that ends the turn."""
    template = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    ids, trained = ChatFormat(HuggingFaceEncoder(tokenizer), template).encode(CHAT[1:3])
    assert trained_text(tokenizer, ids, trained) == [" Strong, na\u00efve \u20ac, and\ngrowing. \n"]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    template = "{% for m in messages %}{{ loop.length ~ m['content'] + eos_token }}{% endfor %}"
    with pytest.raises(ValueError, match=r"changes earlier text when message 3 is added.*generation"):
        ChatFormat(HuggingFaceEncoder(tokenizer), template).encode(CHAT)


@pytest.mark.parametrize("template", BUILT_IN)
def test_built_in_templates_on_bytes(template):
    """Direct: the text as bytes, cut where the answers are."""
    ids, trained = chat_format_of("NullTokenizer", None, 257, template).encode(CHAT)
    a, b = CHAT[2]["content"].encode(), CHAT[4]["content"].encode()
    first, second = {
        "plain": (
            b"System:\nBe brief.\nUser:\nHow is our Union?\nAssistant:\n",
            b"User:\nAnd the people?\nAssistant:\n",
        ),
        "alpaca": (
            b"Be brief.\n\n### Instruction:\nHow is our Union?\n\n### Response:\n",
            b"\n\n### Instruction:\nAnd the people?\n\n### Response:\n",
        ),
        "raw": (b"Be brief.How is our Union?", b"And the people?"),
    }[template]
    assert ids == [*first, *a, 256, *second, *b, 256]
    expected = [0] * len(first) + [1] * (len(a) + 1) + [0] * len(second) + [1] * (len(b) + 1)
    assert [int(mine) for mine in trained] == expected


def test_alpaca_head_equals_its_authors():
    chat = chat_format_of("NullTokenizer", None, 257, "alpaca")
    assert bytes(chat.prompt(CHAT[1:2])) == (
        b"Below is an instruction that describes a task. Write a response that appropriately completes the request."
        b"\n\n### Instruction:\nHow is our Union?\n\n### Response:\n"
    )


@pytest.mark.slow_except("bpe")
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_trained_tokens_of_sentencepiece_are_answers(tmp_path, kind):
    """Direct: each part encoded by SentencePiece alone; the end of text as its id; a prompt is the sample's beginning."""
    path = sentencepiece_model(tmp_path, kind)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    chat = chat_format_of("SentencePieceTokenizer", str(path), None, None)
    ids, trained = chat.encode(CHAT[1:3])
    prompt = pieces.encode("User:\nHow is our Union?\nAssistant:\n")
    assert ids[: len(prompt)] == prompt == chat.prompt(CHAT[1:2]) and not any(trained[: len(prompt)])
    assert all(trained[len(prompt) :]) and ids[-1] == pieces.eos_id()
    assert pieces.decode(ids[:-1]) == "User:\nHow is our Union?\nAssistant:\n Strong, na\u00efve \u20ac, and\ngrowing. "
    megatron = TokenizerChoice("SentencePieceTokenizer", path).build()
    assert megatron.eod == ids[-1] and megatron.tokenize("User:\nHow is our Union?\nAssistant:\n") == prompt
    assert chat.ends() == {pieces.eos_id()}


def test_transformers_reads_the_same_after_an_export(tmp_path):
    """What training saw is what a served model gets from its own apply_chat_template."""
    from megatron_cod.huggingface import companions, side_files

    path = sentencepiece_model(tmp_path)
    chat = chat_format_of("SentencePieceTokenizer", str(path), None, None)

    class Arguments:
        tokenizer_model = str(path)
        chat_template = chat.template.text

    (tmp_path / "hf").mkdir()
    companions.copy_tokenizer_of(Arguments, tmp_path / "hf")
    side_files.agree(Arguments, tmp_path / "hf", {})
    served = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert served.apply_chat_template(CHAT)["input_ids"] == chat.encode(CHAT)[0]
    prompt = served.apply_chat_template(CHAT[:4], add_generation_prompt=True)["input_ids"]
    assert prompt == chat.prompt(CHAT[:4])
    theirs = served.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    assert theirs["assistant_masks"] == [int(mine) for mine in chat.encode(CHAT)[1]]


def test_the_end_of_a_turn_is_known(tokenizer):
    encoder = HuggingFaceEncoder(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert ChatFormat(encoder, CHATML_UNMARKED).ends() == set(ids)
    assert ChatFormat(encoder, MISTRAL).ends() == {ids[0]}


def test_labels_are_the_next_tokens_and_only_answers_count():
    """A row by hand: two samples and padding."""
    ids, trained = np.array([5, 6, 7, 8, 1, 2, 3], np.int32), np.array([0, 0, 1, 1, 0, 1, 1], bool)
    row = filled(Samples(ids, trained, np.array([0, 4, 7])), [1, 0], 8, 99)
    assert row["tokens"].tolist() == [1, 2, 5, 6, 7, 99, 99, 99]
    assert row["labels"].tolist()[:5] == [2, 3, 6, 7, 8]
    assert row["loss_mask"].tolist() == [1, 1, 0, 1, 1, 0, 0, 0]
    assert row["position_ids"].tolist() == [0, 1, 0, 1, 2, 0, 1, 2]


NO_EOS = CHATML.replace("'<|im_end|>'", "eos_token")


class WithoutEnd(encoders.ByteEncoder):
    variables: dict[str, str] = {}  # noqa: RUF012


NO_TEXT = r"NullTokenizer reads no text; give HuggingFaceTokenizer"
WRONG = {
    "no template": (
        lambda f: ("HuggingFaceTokenizer", str(f / "bare"), None, None),
        r"has no chat template; give --chat-t",
    ),
    "no such template": (
        lambda f: ("NullTokenizer", None, 257, "plane"),
        r"--chat-template plane is no file, and none of",
    ),
    "no folder": (
        lambda f: ("HuggingFaceTokenizer", str(f / "nowhere"), None, None),
        r"nowhere: HuggingFaceTokenizer needs",
    ),
    "broken folder": (
        lambda f: ("HuggingFaceTokenizer", str(f / "broken"), None, None),
        r"cannot read .*broken as Hugging",
    ),
    "numbers": (
        lambda f: ("NullTokenizer", None, 128, None),
        r"NullTokenizer reads no text; give HuggingFaceTokenizer",
    ),
    "no model": (
        lambda f: ("SentencePieceTokenizer", str(f / "x.model"), None, None),
        r"needs a SentencePiece .model file",
    ),
    "broken model": (
        lambda f: ("SentencePieceTokenizer", str(f / "bad.model"), None, None),
        r"cannot read tokenizer model",
    ),
    "binary template": (lambda f: ("NullTokenizer", None, 257, str(f / "bad.model")), r"bad.model is not UTF-8 text"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("wrong")
    hugging_face_tokenizer(home / "bare", chat_template=None)
    (home / "broken").mkdir()
    (home / "broken" / "tokenizer.json").write_text("{")
    (home / "bad.model").write_bytes(b"\xff\xfe not a model")
    return home


@pytest.mark.parametrize(("asked", "said"), WRONG.values(), ids=WRONG)
def test_a_tokenizer_or_template_that_will_not_do(folder, asked, said):
    with pytest.raises(ValueError, match=said):
        chat_format_of(*asked(folder))


def test_a_tokenizer_without_an_end():
    with pytest.raises(ValueError, match="uses eos_token, and the tokenizer has none"):
        ChatFormat(WithoutEnd(), NO_EOS)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "the chat template failed: roles must alternate"),
        ("{% for m in messages %}", "the chat template failed: "),
        ("{{ messages[0]['content'] + 3 }}", "the chat template failed: "),
    ],
    ids=["raises", "broken", "type error"],
)
def test_a_template_that_raises(template, said):
    with pytest.raises(ValueError, match=said):
        ChatFormat(encoders.ByteEncoder(), template).encode(CHAT)
