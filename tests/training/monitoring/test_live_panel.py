"""The panel of a training on a terminal, seen by an emulated one."""

import io
import os
import pty
import sys

import pyte
import pytest

from megatron_cod import console
from megatron_cod.training.monitoring.live_panel import LivePanel, live_panel, sparkline

STEP = "step {}/8 | loss {} | ppl 9.00 | lr 1.00e-03 | 4,000 tokens/s | 1.2K tokens seen | ETA 0:0{}"


def bars(heights: str) -> str:
    """Blocks of so many eighths."""
    return "".join(chr(0x2580 + int(height)) for height in heights)


class Terminal(io.StringIO):
    """A stream that is a terminal of 100 columns."""

    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        screen = pyte.Screen(100, 30)
        pyte.Stream(screen).feed(self.getvalue().replace("\n", "\r\n"))
        return [row.rstrip() for row in screen.display if row.strip()]


class Latin(Terminal):
    """One of another encoding."""

    encoding = "iso-8859-1"


STREAMS = {"a pipe": io.StringIO(), "a dumb terminal": Terminal(), "a terminal without Unicode": Latin()}


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "_out", Terminal())
    yield console._out
    assert console._view is None


def test_sparkline_has_the_course_of_the_values():
    assert sparkline([1.0, 2.0, 3.0], 10) == bars("158")
    assert sparkline([2.0, 2.0], 10) == bars("11")
    assert sparkline([float(value) for value in range(100, 0, -1)], 10) == bars("8766543321")


def test_panel_shows_the_step_below_the_lines(terminal, capsys):
    with live_panel("lns, 4 layers"):
        for step, loss in ((1, 5.0), (2, 4.0), (4, 3.0)):
            console.print_status(STEP.format(step, loss, 8 - step))
        console.print_line("validation at step 4: loss 3.1")
        line, top, bar, values, curve, bottom = terminal.rows()
    assert line == "validation at step 4: loss 3.1"
    assert "lns, 4 layers" in top and bottom.startswith("\u2570")
    assert "step 4 of 8  50%  ETA 0:04" in bar and "\u2501" in bar
    assert "loss 3.0   ppl 9.00" in values and "4,000 tokens/s" in values
    assert f"5.0000 {bars('851')} 3.0000" in curve
    assert terminal.rows() == ["validation at step 4: loss 3.1"]  # the panel goes, the lines stay
    assert capsys.readouterr().out.count("step ") == 4  # the file has every line


def test_panel_shows_a_loss_that_is_not_finite(terminal):
    with live_panel("lns"):
        for loss in ("5.0", "nan", "4.0", "inf"):
            console.print_status(STEP.format(1, loss, 1))
        assert "loss inf" in "".join(terminal.rows()) and f"5.0000 {bars('81')} 4.0000" in "".join(terminal.rows())


def test_panel_ends_with_an_error(terminal):
    with pytest.raises(KeyError), live_panel("lns"):
        console.print_status(STEP.format(1, 5.0, 1))
        raise KeyError
    assert terminal.rows() == []


@pytest.mark.parametrize("case", ["a pipe", "a dumb terminal", "a terminal without Unicode", "no log files"])
def test_plain_lines_elsewhere(case, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "dumb" if case == "a dumb terminal" else "xterm")
    monkeypatch.setattr(console, "_out", STREAMS.get(case))
    with live_panel("lns"):
        console.print_status(STEP.format(1, 5.0, 1))
    assert capsys.readouterr().out.startswith("step 1/8 | loss 5.0")


def test_cursor_is_never_hidden(terminal):
    panel = LivePanel(terminal, "lns")
    panel.stop()
    assert "\x1b[?25l" not in terminal.getvalue()


@pytest.mark.slow
def test_training_on_a_terminal(tiny, tmp_path):
    flags = [*tiny, "--save", str(tmp_path / "run"), "--train-iters", "8"]
    child, descriptor = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS="100", LINES="30", OMP_NUM_THREADS="1")
        os.execv(sys.executable, [sys.executable, "-m", "megatron_cod", "train", *flags])
    screen = pyte.Screen(100, 30)
    stream = pyte.ByteStream(screen)
    shown = set()
    while True:
        try:
            stream.feed(os.read(descriptor, 128))
        except OSError:  # the other end is closed
            break
        shown |= {row.strip("\u2502 ").rstrip() for row in screen.display if "step " in row}
    assert os.waitpid(child, 0)[1] == 0, "\n".join(screen.display)
    rows = [row.rstrip() for row in screen.display if row.strip()]
    assert any("step 4 of 8  50%" in row for row in shown), shown
    assert not any("\u256d" in row for row in rows) and any(row.startswith("summary") for row in rows)
    assert [row.split(" |")[0] for row in rows if row.startswith("step ")] == ["step 8/8"]
    log = (tmp_path / "run" / "logs" / "rank_00000.log").read_text()
    assert all(f"\nstep {step}/8 |" in log for step in range(1, 9))
