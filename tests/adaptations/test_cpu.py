"""The CPU path: its names exist, it does not touch a machine with a GPU, and it does not tax every call."""

import pytest
import torch

from megatron_cod.adaptations import cpu
from megatron_cod.adaptations.table import Adapted, missing_names
from tests.commands import run_python


def test_every_adapted_name_is_still_there():
    assert missing_names(cpu.ADAPTED) == [], "adaptations/cpu.py adapts names that torch or Megatron no longer has"


def test_a_lost_name_is_reported_with_its_reason(monkeypatch):
    gone = Adapted("megatron.core.optimizer.clip_grads", "no_such_name", None, "a reason")
    monkeypatch.setattr(cpu, "ADAPTED", (gone,))
    monkeypatch.setattr(cpu, "_installed", False)
    with pytest.raises(RuntimeError, match=r"clip_grads\.no_such_name \(a reason\)"):
        cpu.install()


def test_every_row_gives_a_reason_and_no_name_comes_twice():
    names = [(row.module, row.name) for row in cpu.ADAPTED]
    assert len(names) == len(set(names))
    assert all(row.reason for row in cpu.ADAPTED)


@pytest.mark.slow
def test_adapts_nothing_on_gpus():
    code = """
        import torch
        torch.cuda.is_available = lambda: True
        from megatron_cod.adaptations import cpu
        from megatron_cod.adaptations.table import owner
        before = [getattr(owner(row.module), row.name) for row in cpu.ADAPTED if "megatron" not in row.module]
        assert cpu.install() is False
        after = [getattr(owner(row.module), row.name) for row in cpu.ADAPTED if "megatron" not in row.module]
        print(all(a == b for a, b in zip(before, after)))
    """
    assert run_python(code) == "True"


def test_importing_the_package_touches_nothing():
    code = """
        import torch
        before = (torch.zeros, torch.cuda.current_device, torch.Tensor.cuda)
        import megatron_cod.layer_specs, megatron_cod.training.before_megatron
        print(before == (torch.zeros, torch.cuda.current_device, torch.Tensor.cuda))
    """
    assert run_python(code) == "True"


@pytest.mark.slow
def test_torch_still_knows_there_is_no_gpu():
    code = """
        import torch
        from megatron_cod.adaptations import cpu
        print(cpu.install(), cpu.install(), torch.cuda.is_available(), torch.ones(2, device="cuda").device,
              torch.tensor([1], device=torch.cuda.current_device()).device, torch.ones(1).type(),
              torch.ones(2, device="meta").device)
    """
    assert run_python(code) == "True False False cpu cpu torch.cuda.FloatTensor meta"


@pytest.mark.slow
def test_hot_path_functions_are_torchs_own():
    code = """
        import torch
        names = ["matmul", "add", "mul", "bmm", "mm", "cat"]
        methods = ["add_", "mul_", "to", "copy_", "view", "backward", "__add__", "__matmul__"]
        before = [getattr(torch, n) for n in names] + [getattr(torch.Tensor, n) for n in methods]
        from megatron_cod.adaptations import cpu
        cpu.install()
        after = [getattr(torch, n) for n in names] + [getattr(torch.Tensor, n) for n in methods]
        modes = torch.overrides._get_current_function_mode_stack()
        print(before == after, len(modes), torch.nn.Linear.forward.__module__)
    """
    assert run_python(code) == "True 0 torch.nn.modules.linear"


@pytest.mark.slow
def test_one_random_generator_serves_the_tracker():
    """On CPU the "CUDA" generator is the CPU's: forking the tracker must neither lose nor repeat a state."""
    code = """
        import torch
        from megatron_cod.adaptations import cpu
        cpu.install()
        from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
        tracker = CudaRNGStatesTracker()
        torch.manual_seed(1)
        tracker.add("a", 7)
        plain = torch.rand(2).tolist()
        with tracker.fork("a"):
            first = torch.rand(2).tolist()
        with tracker.fork("a"):
            second = torch.rand(2).tolist()
        torch.manual_seed(1)
        torch.manual_seed(7)
        expected = torch.rand(4).tolist()
        torch.manual_seed(1)
        print(first + second == expected, torch.rand(2).tolist() == plain)
    """
    assert run_python(code) == "True True"


@pytest.mark.gpu
def test_install_does_nothing_on_a_gpu_machine():
    assert cpu.install() is False
    assert torch.cuda.is_available()


@pytest.mark.slow
def test_a_device_context_still_applies_to_factories():
    """Hugging Face models are made on the meta device; without it their rotary frequencies are uninitialised memory."""
    code = """
        import torch
        from megatron_cod.adaptations import cpu
        cpu.install()
        with torch.device("meta"):
            print({made.device.type for made in (torch.empty(1), torch.arange(3), torch.tensor([1.0]), torch.ones(2))})
        print(torch.zeros(1, device="cuda").device.type)
    """
    assert run_python(code).splitlines()[-2:] == ["{'meta'}", "cpu"]
