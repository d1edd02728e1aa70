"""Small real tokenizers, and conversations for them."""

import json
from pathlib import Path

from megatron_cod.data.sample_corpus import sample_corpus_path

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As many models have it, with marks around what is generated."""
CHATML_UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How is our Union?"},
    {"role": "assistant", "content": " Strong, na\u00efve \u20ac, and\ngrowing. "},
    {"role": "user", "content": "And the people?"},
    {"role": "assistant", "content": "The people are strong."},
]


def texts() -> list[str]:
    return [json.loads(line)["text"] for line in sample_corpus_path().read_text().splitlines()]


def hugging_face_tokenizer(
    folder: Path, chat_template: str | None = CHATML, vocabulary: int = 400, eos: str | None = None
):
    """A byte-level BPE tokenizer of the sample corpus, written to ``folder`` as transformers keeps it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts()[:4], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos or "<|endoftext|>")
    if chat_template is not None:
        made.chat_template = chat_template
    made.save_pretrained(folder)
    return made


def sentencepiece_model(folder: Path, kind: str = "bpe") -> Path:
    """A SentencePiece model of the sample corpus."""
    from megatron_cod.data.tokenizers.sentencepiece_training import TokenizerTraining, train_tokenizer

    job = TokenizerTraining(
        output_prefix=str(folder / kind), inputs=[str(sample_corpus_path())], vocab_size=500, model_type=kind
    )
    return train_tokenizer(job).model
