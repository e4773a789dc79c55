"""The bar: when it is drawn, what it says, and that nothing of it stays."""

import io
import sys

import pytest

from crashd.cli import progress as module
from crashd.cli.context import Context
from crashd.cli.progress import Progress, bar, progress


def context(*, quiet: bool = False) -> Context:
    return Context("/nowhere", color=False, legend=True, quiet=quiet, width=None)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put a terminal in the place of stderr: within the test, for pytest puts its own there too."""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setattr(module, "AFTER_SECONDS", 0.0)
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.0)
    return found


@pytest.mark.parametrize(
    ("done", "total", "seconds", "sizes", "text"),
    [
        (0, 10, 0.0, False, "x: [" + "." * 30 + "]   0% 0 of 10"),
        (5, 10, 60.0, False, "x: [" + "#" * 15 + "." * 15 + "]  50% 5 of 10, 1min left"),
        (1 << 20, 4 << 20, 3.0, True, "x: [" + "#" * 8 + "." * 22 + "]  25% 1.0M of 4.0M, 9s left"),
        (30, 10, 5.0, False, "x: [" + "#" * 30 + "] 100% 30 of 10"),
        (7, 0, 5.0, False, "x: 7"),
    ],
)
def test_bar_says_how_far_it_is(
    done: int, total: int, seconds: float, sizes: bool, text: str
) -> None:
    assert bar("x", done, total, seconds, sizes=sizes) == text


def test_progress_on_a_terminal_draws_one_line_and_clears_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = open_terminal(monkeypatch)
    with progress(context(), "reading") as shown:
        shown(1, 4)
        shown(2, 4)
        assert terminal.getvalue().count("\n") == 0
        assert terminal.getvalue().count("reading: [") == 2
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_progress_that_is_complete_is_gone_before_anything_else_is_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = open_terminal(monkeypatch)
    shown = Progress("reading", shown=True, sizes=False)
    shown(1, 2)
    shown(2, 2)
    assert terminal.getvalue().endswith("\r\x1b[K")
    shown.end()
    assert terminal.getvalue().count("\x1b[K") == 2


def test_progress_of_short_work_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    monkeypatch.setattr(module, "AFTER_SECONDS", 60.0)
    with progress(context(), "reading") as shown:
        shown(1, 2)
    assert terminal.getvalue() == ""


def test_progress_is_silent_when_quiet_or_for_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with progress(context(quiet=True), "reading") as shown:
        shown(1, 2)
    assert terminal.getvalue() == ""
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    with progress(context(), "reading") as shown:
        shown(1, 2)
    assert pipe.getvalue() == ""
