import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.crash.headline import headline


@pytest.mark.parametrize(
    ("title", "comm", "program", "expected"),
    [
        (
            "SIGSEGV in web, parse(): NULL pointer read",
            "web",
            "web",
            "NULL pointer read, in parse()",
        ),
        ("SIGABRT in web: abort()", "web", "web", "abort()"),
        (
            "SIGSEGV in web: SIGSEGV sent by another process",
            "web",
            "web",
            "sent by another process",
        ),
        ("SIGSEGV in web", "web", "web", ""),
        ("crash in web: x", "web", "web", "x"),
        ("SIGSEGV in worker, f(): x", "worker", "python3", "x, in f() (worker)"),
        ("SIGSEGV in worker", "worker", "python3", "in worker"),
        ("SIGSEGV in a-name-of-15-by: x", "a-name-of-15-by", "a-name-of-15-bytes", "x"),
        ("SIGSEGV in thread: x", "web", "web", "thread: x"),
        ("SIGSEGV in webby: x", "web", "web", "webby: x"),
        ("SIGRTMIN+3 in web: x", "web", "web", "x"),
        ("lost: web", "web", "web", "lost: web"),
        ("Kernel panic - not syncing: Fatal exception", "", "kernel", "panic: Fatal exception"),
        (
            "BUG: unable to handle kernel NULL pointer dereference in f",
            "",
            "kernel",
            "NULL pointer dereference in f",
        ),
        ("WARNING in f", "", "kernel", "WARNING in f"),
    ],
)
def test_headline_is_the_cause_first(title: str, comm: str, program: str, expected: str) -> None:
    assert headline(title, comm, program) == expected


@given(st.text(max_size=40), st.text(max_size=15), st.text(max_size=15))
def test_headline_of_any_text_is_a_text(title: str, comm: str, program: str) -> None:
    assert len(headline(title, comm, program)) <= len(title) + len(comm) + 10
