import errno
import re
from pathlib import Path

import pytest

from crashd.edge.capture.memory import GoneError
from crashd.errors import CrashdError, FormatError, reason_of

SOURCES = Path(__file__).parents[2] / "crashd"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a"), "No space left on device"),
        (OSError("damaged"), "damaged"),
        (OSError(), "OSError"),
        (OSError(errno.EIO, ""), "[Errno 5]"),
        (TimeoutError(), "TimeoutError"),
        (EOFError(), "EOFError"),
        (AssertionError(), "AssertionError"),
        (MemoryError(), "MemoryError"),
        (KeyError("pid"), "KeyError: 'pid'"),
        (KeyError(), "KeyError"),
        (ValueError(" \n"), "ValueError"),
        (CrashdError(""), "CrashdError"),
        (FormatError("core is cut", hint="x"), "core is cut"),
        (GoneError(), "the process was gone before its memory was read"),
    ],
)
def test_reason_of_is_never_empty(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda path: path.name)
def test_sources_ask_no_error_for_a_text_it_may_lack(path: Path) -> None:
    """OSError.strerror is None where the error was not the kernel's."""
    if path.name not in ("corehandler.py", "errors.py"):
        assert re.findall(r"\b(?:e|error)\.strerror\b", path.read_text()) == []
