"""Fine-tuned, exported, asked: a model that learned three answers gives them, in the chat format, wherever it is run."""

import json

import pytest

from megatron_cod.huggingface.generation import answer, open_model
from tests.data.chat.toys import CHATML_UNMARKED, hugging_face_tokenizer
from tests.distributed.launch import run_training_ranks
from tests.huggingface.models import MODELS, make_model
from tests.programs import run_program
from tests.training.fine_tuning.sft_runs import base, chats, toy  # noqa: F401

KNOWN = {"How is our Union?": "Strong.", "And the people?": "They work.", "Who pays?": "Nobody, at all."}
LEARN = ["--train-iters", "120", "--lr", "1e-2", "--min-lr", "1e-3", "--clip-grad", "1.0", "--eval-interval", "200"]
LEARN += ["--save-interval", "120", "--global-batch-size", "2", "--micro-batch-size", "1", "--log-interval", "40"]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    path = tmp_path_factory.mktemp("answers") / "known.jsonl"
    path.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in KNOWN.items()))
    return ["--sft-data-path", str(path)]


def fine_tune(world, flags, folder):
    ended = run_training_ranks(world, [*flags, "--save", str(folder)], entry="sft")
    assert [rank.code for rank in ended] == [0] * world, ended[0].output[-2500:]


def tool(name, *arguments):
    done = run_program(name, *arguments)
    assert done.returncode == 0, done.stderr[-1500:]
    return done.stdout


def ask(folder) -> dict[str, str]:
    model, tokenizer = open_model(folder)
    return {question: answer(model, tokenizer, question, 50) for question in KNOWN}


@pytest.mark.slow
def test_answers_of_byte_models_are_equal(toy, answers, tmp_path):  # noqa: F811
    """A pretrained toy under LNS, over two stages; the plain template comes along in the checkpoint."""
    flags = toy[: toy.index("--sft-data-path")]
    flags += ["--unset", "train-epochs", *LEARN, *answers, "--pipeline-model-parallel-size", "2"]
    fine_tune(2, flags, tmp_path / "run")
    assert ask(tmp_path / "run") == KNOWN
    tool("convert_hf.py", "export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text()) == {"eos_token_id": [256]}
    assert ask(tmp_path / "hf") == KNOWN
    question = next(iter(KNOWN))
    assert tool("generate.py", "--model", tmp_path / "hf", "--chat", question) == f"{KNOWN[question]}\n"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A tiny Llama with a tokenizer of its own, whose template ends turns with another token than texts; as LNS."""
    folder = tmp_path_factory.mktemp("imported")
    vocabulary = len(hugging_face_tokenizer(folder / "tokenizer", CHATML_UNMARKED))
    MODELS["llama chat"] = ("LlamaForCausalLM", {"vocab_size": vocabulary})
    make_model("llama chat", folder / "hf")
    for path in (folder / "tokenizer").iterdir():
        (folder / "hf" / path.name).write_bytes(path.read_bytes())
    tool("convert_hf.py", "import", "--model", folder / "hf", "--output", folder / "run", "--as-scheme", "lns")
    return folder / "run"


@pytest.mark.slow
def test_an_imported_model_with_its_own_template(imported, answers, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    flags = ["--recipe", str(imported / "recipe.yaml"), "--load", str(imported), "--seq-length", "64", *LEARN, *answers]
    fine_tune(2, [*flags, "--tensor-model-parallel-size", "2", "--sequence-parallel"], tmp_path / "run")
    assert ask(tmp_path / "run") == KNOWN
    tool("convert_hf.py", "export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "hf")
    assert ask(tmp_path / "hf") == KNOWN
    # And without any of this project's code, as a user of transformers would ask.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for question, expected in KNOWN.items():
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        out = model.generate(ids, do_sample=False, max_new_tokens=40, pad_token_id=0)[0, ids.shape[1] :]
        assert tokenizer.decode(out) == f"{expected}<|im_end|>"


@pytest.mark.slow
def test_another_template_replaces_the_tokenizers_own(imported, answers, tmp_path):
    from transformers import AutoTokenizer

    flags = ["--recipe", str(imported / "recipe.yaml"), "--load", str(imported), "--seq-length", "64", *LEARN, *answers]
    fine_tune(1, [*flags, "--chat-template", "plain", "--train-iters", "2", "--save-interval", "2"], tmp_path / "run")
    tool("convert_hf.py", "export", "--checkpoint", tmp_path / "run", "--output", tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "User:\na\nAssistant:\nb<|endoftext|>"


@pytest.mark.slow
def test_names_model_without_template(base, tmp_path):  # noqa: F811
    done = run_program("generate.py", "--checkpoint", base / "lns", "--chat", "Hello")
    assert done.returncode == 2 and "error: the tokenizer has no chat template" in done.stderr
