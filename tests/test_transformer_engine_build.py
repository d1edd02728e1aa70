"""The script that builds the real Transformer Engine: interrupted, repeated, for another torch."""

import pytest

from tests.gpu_emulation.transformer_engine import build
from tests.gpu_emulation.transformer_engine.build import Build, compile_quickly, make, whole


def test_a_folder_that_was_interrupted_is_begun_again(tmp_path):
    def interrupted(folder):
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole(tmp_path / "site", interrupted)
    assert not (tmp_path / "site").exists()
    whole(tmp_path / "site", lambda folder: (folder / "all").touch())
    whole(tmp_path / "site", interrupted)  # it is there: not called
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["all"]


def finish(made):
    libraries = made.site / "transformer_engine" / "wheel_lib"
    libraries.mkdir(parents=True)
    for name in ("libtransformer_engine.so", "transformer_engine_torch.x.so"):
        (libraries / name).touch()


def test_a_finished_build_is_used_by_the_same_torch_only(tmp_path, monkeypatch):
    made = Build(tmp_path)
    assert "make test-cuda-te" in made.missing
    finish(made)
    monkeypatch.setattr(build, "fill", lambda _: pytest.fail("built again"))
    assert make(tmp_path).place == made.place and Build(tmp_path).missing is None
    monkeypatch.setattr(build, "version", lambda package: "9.9.0")
    assert Build(tmp_path).missing and Build(tmp_path).place != made.place


def test_all_sources_are_compiled_as_one(tmp_path):
    for path in ("csrc/common.cpp", "csrc/extensions/gemm.cpp", "build_tools/pytorch.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    recipe = tmp_path / "build_tools" / "pytorch.py"
    recipe.write_text('a = all_files_in_dir(Path(csrc_source_files), name_extension="cpp")\nb = ["-O3"]\n')
    compile_quickly(tmp_path)
    assert (tmp_path / "whole.cpp").read_text().split() == [
        *("#include", '"csrc/common.cpp"', "#include", '"csrc/extensions/gemm.cpp"'),
    ]
    assert recipe.read_text() == 'a = ["whole.cpp"]\nb = ["-O0"]\n'
