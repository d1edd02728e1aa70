"""Stands in for the processes of exports: each ends when the test has it end."""

import io
from collections.abc import Sequence
from pathlib import Path

from megatron_cod.training.exports.observer import Export


class Process:
    """A process that runs until ``end``; the directory of its export is there then."""

    def __init__(self, output: Path) -> None:
        self._output, self.returncode, self.killed = output, None, False
        output.with_name(output.name + ".part").mkdir(parents=True, exist_ok=True)

    def poll(self) -> int | None:
        return self.returncode

    def end(self, code: int) -> None:
        if self.returncode is None:
            self.returncode = code
            if code == 0:
                self._output.with_name(self._output.name + ".part").rename(self._output)

    def kill(self) -> None:
        self.killed = True

    def wait(self) -> None: ...


class Started:
    """In place of ``observer.start_export``."""

    def __init__(self) -> None:
        self.running: list[Process] = []
        self.steps: list[int] = []
        self.code, self.text = 0, b""

    def __call__(self, checkpoint: Path, output: Path, modules: Sequence[str]) -> Export:
        assert checkpoint.is_dir() and list(modules) == []
        self.steps.append(int(checkpoint.name.removeprefix("iter_")))
        self.running.append(Process(output))
        return Export(checkpoint, self.running[-1], io.BytesIO(self.text), 0.0)  # type: ignore[arg-type]

    def end_all(self) -> None:
        for process in self.running:
            if not process.killed:
                process.end(self.code)
