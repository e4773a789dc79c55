"""The system tier: the kernel really hands crashes to a daemon of this checkout."""

import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.running import KEEPING_CONFIG, Daemon
from tests.vm import package

collect_ignore = [] if os.environ.get("CRASHD_TEST_VM") == "1" else ["test_guest.py"]

UNLIMITED = resource.RLIM_INFINITY


@pytest.fixture(autouse=True)
def forbid_registering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no daemon become the kernel's handler in a test that does not hold the settings."""
    if "core_pattern_lock" not in request.fixturenames:
        monkeypatch.setattr(Daemon, "may_register", False)


@pytest.fixture
def daemon(
    request: pytest.FixtureRequest, short_tmp: Path, core_pattern_owner: None
) -> Iterator[Daemon]:
    """A registered daemon on a private root, with the test's (indirect) parameter as its
    configuration; whatever a test does, the sysctls are put back after it.
    """
    del core_pattern_owner
    with Daemon(short_tmp / "r", config=getattr(request, "param", KEEPING_CONFIG)) as running:
        yield running


def raise_core_limit() -> None:
    """Allow cores in a child: test runners often have `ulimit -c 0`, which crashd honours."""
    resource.setrlimit(
        resource.RLIMIT_CORE, (UNLIMITED, resource.getrlimit(resource.RLIMIT_CORE)[1])
    )


@pytest.fixture
def crash_sleep() -> Callable[[], int]:
    """Crash one `sleep` by SIGSEGV; give its pid once its parent's wait has returned."""

    def crash(prefix: Sequence[str] = ()) -> int:
        child = subprocess.Popen([*prefix, "sleep", "1000"], preexec_fn=raise_core_limit)
        os.kill(child.pid, signal.SIGSEGV)
        assert child.wait(60) == -signal.SIGSEGV
        return child.pid

    return crash


@pytest.fixture(scope="session")
def session_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the processes of this session share, for what only one of them builds."""
    own = tmp_path_factory.getbasetemp()
    directory = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "session"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def bundles(session_directory: Path) -> Path:
    """Where the first build of a package leaves the packages that are included in it."""
    return session_directory / "bundles"


@pytest.fixture(scope="session")
def wheels(session_directory: Path) -> Path:
    """Where the first build of a package leaves the files of the wheels that are included in it."""
    return session_directory / "wheels"


@pytest.fixture(scope="session")
def deb(session_directory: Path, bundles: Path, wheels: Path) -> Path:
    """The Debian package of this checkout."""
    note = session_directory / "deb.path"
    with (session_directory / "deb.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not note.exists():
            made = package.build(session_directory / "deb", bundles=bundles, wheels=wheels)
            note.write_text(str(made))
    return Path(note.read_text())


@pytest.fixture(scope="session")
def crasher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A C program that writes through NULL a few calls deep, with debug information."""
    directory = tmp_path_factory.mktemp("crasher")
    source = directory / "crasher.c"
    source.write_text(
        """
        #include <pthread.h>
        #include <unistd.h>
        static void *idle(void *p) { pause(); return p; }
        __attribute__((noinline)) void third(volatile int *p) { *p = 42; }
        __attribute__((noinline)) void second(int *p) { third(p); __asm__(""); }
        __attribute__((noinline)) void first(void) { second(0); __asm__(""); }
        int main(void) {
            pthread_t t[3];
            for (int i = 0; i < 3; i++) pthread_create(&t[i], 0, idle, 0);
            usleep(50000);
            first();
        }
        """
    )
    program = directory / "crasher"
    subprocess.run(["gcc", "-g", "-O1", "-pthread", "-o", program, source], check=True)
    return program


def run_crasher(program: Path) -> int:
    """Run a program that crashes by itself; give its pid."""
    child = subprocess.Popen([program], preexec_fn=raise_core_limit)
    assert child.wait(60) == -signal.SIGSEGV
    return child.pid


# Not faulthandler._sigsegv(): that sets RLIMIT_CORE to 0 first, which crashd honours.
PYTHON_CRASH = [sys.executable, "-c", "import ctypes; ctypes.string_at(0)"]
