"""The tiers of the tests, by directory, and what each may touch.

unit          no process, no network (forbidden by an audit hook), no root, no /proc, no sleep
integration   real sockets, files and processes; no privilege
system        root, the kernel's settings; only with CRASHD_TEST_SYSTEM=1, then a skip is a failure
"""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A machine that is busy is no failure: what must be fast, its own test says in CPU time.
hypothesis.settings.register_profile("crashd", deadline=None)
hypothesis.settings.load_profile("crashd")

TESTS = Path(__file__).parent
TIERS = ("unit", "integration", "system")
SYSTEM_VARIABLE = "CRASHD_TEST_SYSTEM"
PROC_SYS = Path("/proc/sys")
WITHOUT_SETTINGS = frozenset(
    {
        *("test_alerts", "test_bombs", "test_debugger", "test_fleetunit", "test_kerneldump"),
        *("test_kernellog", "test_package", "test_packages", "test_powercut"),
    }
)
"""Files of the system tier whose tests crash no process that may dump core, and change no sysctl:
other processes may run them meanwhile.
"""

# ---- tiers ----


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --tier."""
    parser.addoption(
        "--tier",
        action="append",
        choices=TIERS,
        help="run only the tests of this tier (repeatable)",
    )


def tier_of(path: Path) -> str | None:
    """Tell the tier of a test file; None for one that lies outside of all."""
    if not path.is_relative_to(TESTS):
        return None
    parts = path.relative_to(TESTS).parts
    return parts[0] if parts and parts[0] in TIERS else None


def why_no_system_tests(proc_sys: Path = PROC_SYS) -> str | None:
    """Tell why the system tests cannot run here; None where they can."""
    if os.environ.get(SYSTEM_VARIABLE) != "1":
        return f"{SYSTEM_VARIABLE}=1 is not set"
    try:
        # Opening it writable is the probe; nothing is written.
        os.close(os.open(proc_sys / "kernel/core_pattern", os.O_WRONLY | os.O_CLOEXEC))
    except OSError as e:
        return f"kernel.core_pattern is not writable: {e.strerror}"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with its tier, leave out the tiers not asked for, skip what cannot run."""
    wanted = config.getoption("--tier") or TIERS
    why_not = why_no_system_tests()
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        tier = tier_of(item.path)
        if tier is None:
            raise pytest.UsageError(f"{item.path} is in none of tests/{{{','.join(TIERS)}}}")
        item.add_marker(tier)
        uses_settings = "core_pattern_lock" in getattr(item, "fixturenames", ())
        if uses_settings and item.path.stem in WITHOUT_SETTINGS:
            raise pytest.UsageError(f"{item.path} uses the settings: see WITHOUT_SETTINGS")
        if tier == "system" and why_not is not None:
            item.add_marker(pytest.mark.skip(reason=f"system tier: {why_not}"))
        (kept if tier in wanted else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def _may_use_settings(file: str) -> bool:
    return file.startswith("tests/system/") and Path(file).stem not in WITHOUT_SETTINGS


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests of one file in one process, and in one and the same all that use the kernel's
    settings, of which there is one set: those of the system tier, but for WITHOUT_SETTINGS.
    """
    from xdist.scheduler.loadscope import LoadScopeScheduling

    def scope_of(nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.startswith("tests/system/test_package"):
            return "packages"
        return "settings" if _may_use_settings(file) else file

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = scope_of
    return scheduler


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if (
        report.skipped
        and os.environ.get(SYSTEM_VARIABLE) == "1"
        and not hasattr(report, "wasxfail")
    ):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, which {SYSTEM_VARIABLE}=1 forbids: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a system test into a failure where system tests were asked for."""
    report = yield
    if item.get_closest_marker("system") is not None:
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a system test module that skips itself."""
    report = yield
    if tier_of(collector.path) == "system":
        _fail_if_skipped(report)
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say for each tier how its tests ended, and why some were skipped."""
    outcomes = {tier: Counter[str]() for tier in TIERS}
    reasons = {tier: Counter[str]() for tier in TIERS}
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            # "" is a setup or teardown that passed.
            if isinstance(report, pytest.TestReport) and outcome:
                tier = tier_of(config.rootpath / report.nodeid.partition("::")[0])
                if tier is not None:
                    outcomes[tier][outcome] += 1
                    if report.skipped and isinstance(report.longrepr, tuple):
                        reasons[tier][report.longrepr[2].removeprefix("Skipped: ")] += 1
    terminalreporter.section("tiers")
    for tier in TIERS:
        counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes[tier].items()))
        terminalreporter.line(f"{tier}: {counts or 'none run'}")
        for reason, count in sorted(reasons[tier].items()):
            terminalreporter.line(f"  {count} skipped: {reason}")


# ---- what unit tests may not do ----


class ForbiddenInUnitTest(BaseException):
    """A unit test did what only other tiers may; no `except Exception` can swallow this."""


_FORBIDDEN_EVENTS = frozenset(
    {
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "pty.spawn",
        "socket.getaddrinfo",
        "socket.gethostbyaddr",
        "socket.gethostbyname",
        "socket.getnameinfo",
        "subprocess.Popen",
    }
)
_ADDRESS_EVENTS = frozenset({"socket.bind", "socket.connect", "socket.sendto"})
_LOCAL_FAMILY = 1  # AF_UNIX


@dataclass(slots=True)
class Ban:
    """Whether a unit test is running that has to be watched."""

    active: bool = False

    def audit(self, event: str, arguments: tuple[object, ...]) -> None:
        """Refuse what is forbidden; called by the interpreter (PEP 578), also for C code."""
        if not self.active:
            return
        if event in _FORBIDDEN_EVENTS or (
            event in _ADDRESS_EVENTS and getattr(arguments[0], "family", None) != _LOCAL_FAMILY
        ):
            raise ForbiddenInUnitTest(
                f"{event} in a unit test: move it to another tier, or mark it allow_subprocess"
            )


_ban = Ban()


def pytest_configure() -> None:
    """Watch from the first test on: a hook of the interpreter cannot be taken off again."""
    # Programs that tests start shall be interruptible, whatever started this session: `nohup`
    # and a shell's `&` ignore SIGINT and SIGQUIT, and what is ignored is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    sys.addaudithook(_ban.audit)


@pytest.fixture(autouse=True)
def forbid_processes_and_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let a unit test start no process and reach no network, unless marked allow_subprocess."""
    node = request.node
    _ban.active = (
        node.get_closest_marker("unit") is not None
        and node.get_closest_marker("allow_subprocess") is None
    )
    try:
        yield
    finally:
        _ban.active = False


# ---- what tests share ----


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory with a short path: a socket's has 107 bytes, kernel.core_pattern 127."""
    path = Path(tempfile.mkdtemp(prefix="cd", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


SYSCTLS = ("fs/suid_dumpable", "kernel/core_pipe_limit", "kernel/core_pattern")
"""In the order of putting back: suid_dumpable=2 wants a pattern that is a pipe or absolute."""
LOCK_SECONDS = 100


@dataclass(frozen=True, slots=True)
class CorePatternOwner:
    """The right to change the settings of SYSCTLS, and what they were before."""

    saved: Mapping[str, str]
    proc_sys: Path = PROC_SYS

    def read(self, name: str) -> str:
        """Read one setting, such as "kernel/core_pattern"."""
        return (self.proc_sys / name).read_text().removesuffix("\n")

    def write(self, name: str, value: str) -> None:
        """Change one setting until the end of the test."""
        if name not in self.saved:
            raise ValueError(f"{name} would not be put back")
        (self.proc_sys / name).write_text(value + "\n")

    def restore(self) -> None:
        """Put every setting back, and check it; one that fails does not keep the others from it."""
        failures = []
        for name, value in self.saved.items():
            try:
                if self.read(name) != value:
                    self.write(name, value)
                if self.read(name) != value:
                    failures.append(f"{name} is {self.read(name)!r}, not {value!r}")
            except OSError as e:
                failures.append(f"{name}: {e}")
        if failures:
            raise RuntimeError(f"settings not put back: {'; '.join(failures)}")


def own_settings(proc_sys: Path) -> CorePatternOwner:
    """Note what the settings are now."""
    reader = CorePatternOwner({}, proc_sys)
    return CorePatternOwner({name: reader.read(name) for name in SYSCTLS}, proc_sys)


@contextlib.contextmanager
def hold_core_pattern(seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Be the only one on this machine that changes the settings; wait for the lock so long."""
    lock_dir = Path("/run/lock")
    if not os.access(lock_dir, os.W_OK):
        lock_dir = Path("/tmp")
    path = lock_dir / "crashd-core-pattern.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    owner = os.pread(fd, 16, 0).decode("ascii", "replace").strip()
                    pytest.fail(f"{path} is held by another test session, pid {owner}")
                time.sleep(0.2)  # flock(2) has no timeout, and SIGALRM is pytest-timeout's
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(fd)


@pytest.fixture(scope="session")
def core_pattern_lock() -> Iterator[None]:
    """Be the only test session on this machine that changes the settings, from here to its end."""
    with hold_core_pattern():
        yield


@pytest.fixture
def core_pattern_owner(core_pattern_lock: None) -> Iterator[CorePatternOwner]:
    """For system tests that change kernel.core_pattern and its companions: puts them back."""
    owner = own_settings(PROC_SYS)
    try:
        yield owner
    finally:
        owner.restore()
