"""A tokenizer named on the hub is refused in one line where it cannot be had, and left alone where it can."""

from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from megatron_cod.training.data import hub_tokenizer
from megatron_cod.training.data.hub_tokenizer import problem


def asked(name: str | None, kind: str = "HuggingFaceTokenizer") -> SimpleNamespace:
    return SimpleNamespace(tokenizer_type=kind, tokenizer_model=name)


@pytest.fixture
def network(monkeypatch):
    """A hub that answers unless a test says otherwise, and an empty cache."""
    monkeypatch.setattr(hub_tokenizer, "_unreachable", lambda _: None)
    monkeypatch.setattr(hub_tokenizer, "_is_cached", lambda _: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return monkeypatch


@pytest.mark.parametrize("kind", ["HuggingFaceTokenizer", "SFTTokenizer"])
def test_rejects_a_hub_name_without_network(network, kind):
    network.setattr(hub_tokenizer, "_unreachable", lambda _: "Name or service not known")
    found = problem(asked("some/tokenizer", kind))
    assert found and "does not answer (Name or service not known)" in found and "\n" not in found


def test_rejects_a_hub_name_offline(network):
    network.setattr(constants, "HF_HUB_OFFLINE", True)
    found = problem(asked("some/tokenizer"))
    assert found and "HF_HUB_OFFLINE is set" in found


@pytest.mark.parametrize("name", ["/no/where", "./here", "a/b/c", "~/tokenizer"])
def test_rejects_a_path_that_does_not_exist(network, name):
    assert problem(asked(name)) == f"--tokenizer-model {name} does not exist"


def test_accepts_available_tokenizers(network, tmp_path):
    assert problem(asked("some/tokenizer")) is None
    assert problem(asked(str(tmp_path))) is None
    assert problem(asked(None)) is None
    assert problem(asked("some/tokenizer", "NullTokenizer")) is None
    network.setattr(hub_tokenizer, "_unreachable", lambda _: "down")
    network.setattr(hub_tokenizer, "_is_cached", lambda _: True)
    assert problem(asked("some/tokenizer")) is None


def test_reports_hub_behind_a_proxy(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert hub_tokenizer._unreachable.__wrapped__("https://no.such.host.invalid") is None
    monkeypatch.delenv("HTTPS_PROXY")
    for name in hub_tokenizer._PROXIES:
        monkeypatch.delenv(name, raising=False)
    assert hub_tokenizer._unreachable.__wrapped__("https://no.such.host.invalid")
