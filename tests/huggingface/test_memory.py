"""Peak memory of a conversion: bounded by the largest tensors, whatever the number of layers. 7B shapes, few layers."""

import subprocess

import pytest

from tests.benchmark.program_memory import FFN, HIDDEN, VOCAB, peak, write_llama

CONVERT = "megatron_cod.cli.convert"
# The tensors that one row of the table joins: gate and up, or the embedding.
LARGEST = max(2 * FFN * HIDDEN, VOCAB * HIDDEN) * 2


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_model(tmp_path):
    peaks: dict[tuple[str, int], int] = {}
    for layers in (2, 5):
        folder = tmp_path / str(layers)
        folder.mkdir()
        write_llama(folder / "hf", layers)
        peaks["import", layers] = peak(
            *(
                CONVERT,
                "import",
                "--model",
                folder / "hf",
                "--output",
                folder / "lns",
                "--as-scheme",
                "lns",
                "--no-verify",
            )
        )
        command = (CONVERT, "export", "--checkpoint", folder / "lns", "--output", folder / "back", "--no-verify")
        peaks["export", layers] = peak(*command)
        print({f"{way} {layers} layers": f"{found / 1e9:.2f} GB" for (way, layers), found in peaks.items()})
        subprocess.run(["rm", "-r", str(folder)], check=True)
    allowed = 1.3 * LARGEST + 2e9
    assert max(peaks.values()) <= allowed, (peaks, allowed)
    for way in ("import", "export"):
        # Three layers more are 1.2 GB more of weights.
        assert abs(peaks[way, 5] - peaks[way, 2]) < 0.2e9, peaks
