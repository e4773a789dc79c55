"""The guards of tests/conftest.py, each shown to bite."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import (
    SYSCTLS,
    SYSTEM_VARIABLE,
    TESTS,
    CorePatternOwner,
    ForbiddenInUnitTest,
    own_settings,
    tier_of,
    why_no_system_tests,
)


def fork_child() -> None:
    """Fork; the child, should there be one, ends at once."""
    if os.fork() == 0:
        os._exit(0)


def connect(family: int, address: str | tuple[str, int]) -> None:
    """Connect to where nobody listens."""
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.connect(address)


FORBIDDEN: dict[str, Callable[[], object]] = {
    "subprocess": lambda: subprocess.run(["true"], check=True),
    "os.fork": fork_child,
    "os.posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "os.spawnv": lambda: os.spawnv(os.P_WAIT, "/bin/true", ["true"]),
    "os.system": lambda: os.system("true"),
    "os.popen": lambda: os.popen("true"),
    "os.execv": lambda: os.execv("/bin/true", ["true"]),
    "connect": lambda: connect(socket.AF_INET, ("127.0.0.1", 9)),
    "connect, IPv6": lambda: connect(socket.AF_INET6, ("::1", 9)),
    "getaddrinfo": lambda: socket.getaddrinfo("localhost", 9),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_ban_forbidden_call_in_unit_test_raises(what: str) -> None:
    with pytest.raises(ForbiddenInUnitTest):
        FORBIDDEN[what]()


def test_ban_behind_except_exception_still_raises() -> None:
    with pytest.raises(ForbiddenInUnitTest):
        try:
            fork_child()
        except Exception:
            pytest.fail("swallowed")


def test_ban_in_thread_still_raises() -> None:
    caught: list[type[BaseException]] = []

    def run() -> None:
        try:
            fork_child()
        except BaseException as e:
            caught.append(type(e))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert caught == [ForbiddenInUnitTest]


def test_ban_unix_socket_is_allowed(short_tmp: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect(socket.AF_UNIX, str(short_tmp / "s"))


@pytest.mark.allow_subprocess
def test_ban_marked_test_may_start_processes() -> None:
    assert subprocess.run(["true"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("path", "tier"),
    [
        (TESTS / "unit/domain/test_text.py", "unit"),
        (TESTS / "integration/test_x.py", "integration"),
        (TESTS / "system/test_x.py", "system"),
        (TESTS / "builders/elfcore.py", None),
        (TESTS.parent / "unit/test_x.py", None),
        (TESTS, None),
    ],
)
def test_tier_of_is_the_first_directory(path: Path, tier: str | None) -> None:
    assert tier_of(path) == tier


def test_own_tier_is_unit(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("unit") is not None


def test_short_tmp_leaves_room_for_a_socket(short_tmp: Path) -> None:
    assert short_tmp.is_dir()
    assert len(str(short_tmp)) <= 16


def test_why_no_system_tests_unset_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SYSTEM_VARIABLE, raising=False)
    assert SYSTEM_VARIABLE in (why_no_system_tests() or "")


def test_why_no_system_tests_unwritable_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(SYSTEM_VARIABLE, "1")
    assert "kernel.core_pattern" in (why_no_system_tests(tmp_path) or "")


def test_why_no_system_tests_writable_is_none(
    monkeypatch: pytest.MonkeyPatch, settings: Path
) -> None:
    monkeypatch.setenv(SYSTEM_VARIABLE, "1")
    assert why_no_system_tests(settings) is None


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A /proc/sys of files."""
    for name in SYSCTLS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("0\n")
    (tmp_path / "kernel/core_pattern").write_text("core\n")
    return tmp_path


def test_restore_after_changes_puts_all_back(settings: Path) -> None:
    owner = own_settings(settings)
    owner.write("kernel/core_pattern", "|/x %p")
    owner.write("kernel/core_pipe_limit", "16")
    owner.write("fs/suid_dumpable", "2")
    assert owner.read("kernel/core_pattern") == "|/x %p"
    owner.restore()
    assert {name: owner.read(name) for name in SYSCTLS} == {
        "fs/suid_dumpable": "0",
        "kernel/core_pipe_limit": "0",
        "kernel/core_pattern": "core",
    }


def test_restore_one_setting_gone_restores_the_others_and_raises(settings: Path) -> None:
    owner = own_settings(settings)
    owner.write("kernel/core_pattern", "|/x %p")
    (settings / "fs/suid_dumpable").unlink()
    with pytest.raises(RuntimeError, match="fs/suid_dumpable"):
        owner.restore()
    assert owner.read("kernel/core_pattern") == "core"


def test_write_of_a_setting_not_saved_is_refused(settings: Path) -> None:
    with pytest.raises(ValueError, match="kernel/panic"):
        CorePatternOwner({}, settings).write("kernel/panic", "1")


# ---- in a session of its own ----

SKIPPING = """
import pytest

@pytest.fixture
def missing():
    pytest.skip("no such tool")

def test_passes(): pass
def test_skips_itself(): pytest.skip("no such tool")
def test_skipped_by_fixture(missing): pass
@pytest.mark.skipif(True, reason="no such tool")
def test_skipped_by_mark(): pass
"""
MODULE_SKIPPING = """
import pytest
pytest.skip("no such tool", allow_module_level=True)
"""


def run_session(
    pytester: pytest.Pytester, files: dict[str, str], *arguments: str
) -> pytest.RunResult:
    """Run a session with our conftest on these test files, in another process."""
    root = pytester.path
    for name, text in files.items():
        path = root / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "tests/conftest.py").write_text((TESTS / "conftest.py").read_text())
    (root / "pyproject.toml").write_text((TESTS.parent / "pyproject.toml").read_text())
    return pytester.run(sys.executable, "-m", "pytest", *arguments)


@pytest.mark.allow_subprocess
def test_session_system_tests_not_asked_for_are_skipped_with_the_reason(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SYSTEM_VARIABLE, raising=False)
    result = run_session(pytester, {"system/test_s.py": SKIPPING, "unit/test_u.py": SKIPPING})
    result.assert_outcomes(passed=1, skipped=7)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "unit: 1 passed, 3 skipped",
            "  3 skipped: no such tool",
            "system: 4 skipped",
            "  1 skipped: no such tool",  # pytest looks at skipif before skip
            f"  3 skipped: system tier: {SYSTEM_VARIABLE}=1 is not set",
        ]
    )


@pytest.mark.allow_subprocess
def test_session_system_tests_asked_for_may_not_skip(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SYSTEM_VARIABLE, "1")
    files = {"system/test_s.py": SKIPPING, "unit/test_u.py": SKIPPING}
    result = run_session(pytester, files)
    assert result.ret == 1
    outcomes = result.parseoutcomes()
    # A skip before the test itself is an error, one in it a failure.
    forbidden = outcomes.get("failed", 0) + outcomes.get("errors", 0)
    assert forbidden == (3 if why_no_system_tests() is None else 4)
    assert outcomes["skipped"] == 3, "those of the unit tier"
    result.stdout.fnmatch_lines([f"*skipped, which {SYSTEM_VARIABLE}=1 forbids: *"])


@pytest.mark.allow_subprocess
def test_session_system_module_that_skips_itself_is_an_error(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SYSTEM_VARIABLE, "1")
    result = run_session(pytester, {"system/test_s.py": MODULE_SKIPPING})
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*forbids: *no such tool*"])


@pytest.mark.allow_subprocess
def test_session_tier_option_leaves_out_the_others(pytester: pytest.Pytester) -> None:
    passing = "def test_passes(): pass\n"
    files = {f"{tier}/test_{tier}.py": passing for tier in ("unit", "integration", "system")}
    result = run_session(pytester, files, "--tier", "unit", "--tier", "integration")
    result.assert_outcomes(passed=2, deselected=1)


@pytest.mark.allow_subprocess
def test_session_test_outside_the_tiers_is_refused(pytester: pytest.Pytester) -> None:
    result = run_session(pytester, {"other/test_o.py": "def test_passes(): pass\n"})
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*other/test_o.py is in none of tests/{unit,*"])
