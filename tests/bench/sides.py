"""Who catches the crashes. A side is started once, and activated before each of its runs.

Over 400 lines, because it is one list.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crashd.daemon.capture.source import SMALL_BYTES
from crashd.domain.crash.model import Crash, Mode, State
from crashd.edge.host import sysctl
from crashd.errors import CrashdError
from crashd.store import entry
from crashd.store.index import Index
from tests.bench.cases import UNLIMITED, Programs
from tests.bench.report import DRAIN, KERNEL, MEMORY, SHIPPING, SOCKET, STREAM, SYSTEMD
from tests.bench.sysctls import Sysctls, read_sysctls
from tests.running import Daemon, wait_until
from tests.shipping import MACHINE_ID, Shipper, is_all_sent

START_SECONDS: Final = 20
STOP_SECONDS: Final = 60
SENT_SECONDS: Final = 120
MANY: Final = "1000"
"""kernel.core_pipe_limit where it is not to matter."""


class NotAvailableError(Exception):
    """A side cannot be measured here; the message is one line."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is stored of the crashes since the last `clear`."""

    recorded: int
    stored_bytes: int
    """Of everything, as `st_blocks` counts it."""
    core_bytes: int
    """Of the cores alone: systemd-coredump's metadata is in the journal."""
    whole: int | None = None
    """None where it cannot be known."""
    spooled: int = 0
    """How many came by the spool."""
    note: str = ""


class Side(ABC):
    """Something that catches crashes."""

    name: str
    sysctls: Sysctls
    lists = True
    """Whether there is a moment from which on a crash is listed."""

    @abstractmethod
    def start(self) -> None:
        """Start it; it is stopped even when this fails.

        Raises:
            NotAvailableError: it cannot be had on this machine.

        """

    @abstractmethod
    def stop(self) -> None:
        """End what `start` started."""

    def activate(self) -> None:
        """Have the kernel give it the next crash."""
        self.sysctls.apply()

    def configure(self, capture: str) -> None:  # noqa: B027 (most have nothing to configure)
        """Set what a case wants of crashd's configuration."""

    def leave(self) -> None:  # noqa: B027 (most have no daemon that may be away)
        """Stop the daemon, if there is one; the kernel's settings stay."""

    def come_back(self) -> None:  # noqa: B027
        """Start it again after `leave`; does nothing when it is there.

        Raises:
            MeasureError: it does not start.

        """

    @abstractmethod
    def recorded(self) -> int:
        """Count the crashes that are listed as done with."""

    def busy(self) -> bool:
        """Return whether it is still at work on a crash."""
        return False

    @abstractmethod
    def outcome(self) -> Outcome:
        """Look at all that is stored."""

    @abstractmethod
    def clear(self) -> None:
        """Remove all that is stored."""


# -- crashd ----------------------------------------------------------------------------------------


class Crashd(Side):
    """A daemon of this checkout on a private root."""

    def __init__(self, name: str, root: Path, mode: str, engine: str, more: str = "") -> None:
        self.name = name
        self._mode, self._engine, self._more = mode, engine, more
        self._capture = UNLIMITED
        self._daemon = Daemon(root, config=build_config(mode, engine) + more)
        self._paths = self._daemon.paths
        self._index: Index | None = None
        self._away = False

    def _start_daemon(self) -> None:
        try:
            self._daemon.start()
        except AssertionError as e:
            log = self._daemon.log
            reason = last_line(log, "crashd: ") or last_line(log) or str(e)
            # The root is gone when this is read.
            reason = reason.removeprefix("crashd: ").replace(f"{self._paths.root}/", "")
            raise NotAvailableError(reason) from e

    def start(self) -> None:
        """Start the daemon, and note what it registers."""
        self._start_daemon()
        self.sysctls = read_sysctls()
        if str(self._paths.root) not in self.sysctls.pattern:
            raise NotAvailableError(f"not registered: {last_line(self._daemon.log, 'not reg')}")
        try:
            self._index = Index.open(self._paths.index)
        except CrashdError as e:
            raise NotAvailableError(str(e)) from e

    def stop(self) -> None:
        """End the daemon; it gives back what it registered if that still stands."""
        if self._index is not None:
            self._index.close()
        self._stop_daemon()

    def _stop_daemon(self) -> None:
        try:
            self._daemon.stop()
        except subprocess.TimeoutExpired:
            self._daemon.stop(signal.SIGKILL)

    def configure(self, capture: str) -> None:
        """Restart the daemon where a case wants another section [capture] than the last one."""
        if capture == self._capture:
            return
        self._capture = capture
        config = build_config(self._mode, self._engine, capture) + self._more
        self._paths.config_file.write_text(config)
        self._stop_daemon()
        self._start_daemon()

    def leave(self) -> None:
        """Stop the daemon, and register its handler again, which it gave back."""
        self._stop_daemon()
        self._away = True
        self.activate()

    def come_back(self) -> None:
        """Start the daemon again; it takes in what lies in the spool."""
        if self._away:
            self._away = False
            self._start_daemon()

    def _opened(self) -> Index:
        if self._index is None:
            raise ValueError(f"{self.name} was not started")
        return self._index

    def recorded(self) -> int:
        """Count the rows of the index that are not of captures at work."""
        index = self._opened()
        ids = index.ids()
        # In this order: one that is done in between is counted only the next time.
        return len(set(ids) - set(index.ids_in_state(State.CAPTURING)))

    def busy(self) -> bool:
        """Look for captures at work, and for crashes in the spool."""
        capturing = self._opened().ids_in_state(State.CAPTURING)
        spooled = [e for e in os.scandir(self._paths.spool) if e.is_dir()]
        return bool(capturing) or any(not e.name.endswith(".bad") for e in spooled)

    def outcome(self) -> Outcome:
        """Read every record."""
        crashes, sizes = [], Counter[str]()
        for crash_id in entry.entry_ids(self._paths):
            with entry.open_entry(self._paths, crash_id) as found:
                crashes.append(found.read())
                for name in found.file_names():
                    sizes[name] += os.stat(name, dir_fd=found.fd).st_blocks * 512
        whole = sum(crash.state is State.COMPLETE for crash in crashes)
        spooled = sum(crash.capture.mode is Mode.SPOOL for crash in crashes)
        note = describe_captures(crashes, f"{self._mode} {self._engine}")
        return Outcome(len(crashes), sizes.total(), sizes[entry.CORE], whole, spooled, note)

    def clear(self) -> None:
        """Remove every entry, and its row."""
        for crash_id in entry.entry_ids(self._paths):
            entry.remove(self._paths, crash_id)
        self._opened().remove(self._opened().ids())


class Shipping(Crashd):
    """The same, while everything, cores included, is sent to a directory as its fleet's bucket."""

    def __init__(self, name: str, root: Path) -> None:
        self._bucket = root / "bucket"
        more = f'[fleet]\nurl = "file://{self._bucket}"\ncores = "full"\nbandwidth = "infinity"\n'
        more += "cores_per_signature = 1000\n"
        super().__init__(name, root, "pipe", "auto", more)
        self._shipper = Shipper(root)

    def start(self) -> None:
        """Start the shipper, and the daemon."""
        self._bucket.mkdir(parents=True)
        self._paths.runtime_dir.mkdir(parents=True, exist_ok=True)
        self._paths.machine_id.parent.mkdir(parents=True, exist_ok=True)
        self._paths.machine_id.write_text(f"{MACHINE_ID}\n")
        try:
            self._shipper.start()
        except AssertionError as e:
            raise NotAvailableError(last_line(self._shipper.root / "ship.log") or str(e)) from e
        super().start()

    def stop(self) -> None:
        """End both."""
        super().stop()
        self._shipper.kill()

    def clear(self) -> None:
        """Remove every entry once it is sent: that of a removed one is not."""
        wait_until(lambda: is_all_sent(self._paths), SENT_SECONDS, f"{self.name}: all is sent")
        super().clear()


def build_config(mode: str, engine: str, capture: str = UNLIMITED) -> str:
    """Write a configuration; `capture` is what its section [capture] has besides mode and engine.

    Nothing is evicted: a case counts what is stored.
    """
    config = f'[capture]\nmode = "{mode}"\nengine = "{engine}"\n{capture}'
    config += '[retention.process]\nkeep_free = "1%"\nmax_per_signature = "infinity"\n'
    config += '[http]\nlisten = "off"\n'
    # A storm is one program crashing again and again: exactly what the limiter is there to stop.
    config += "[limiter]\nenabled = false\n"
    # What captures cost is measured; an analysis comes later, and on top.
    config += "[analysis]\nenabled = false\n"
    return config


def describe_captures(crashes: Sequence[Crash], expected: str) -> str:
    """Say which captures were not `expected` ("mode engine"), and which cores are not whole.

    Cores that came by the spool are only counted: there the handler chose the engine.
    """
    mode, _, engine = expected.partition(" ")
    ways: Counter[str] = Counter()
    for crash in crashes:
        small = crash.core.size_bytes <= SMALL_BYTES
        wanted = "stream" if engine == "stream" or small else "memory"
        if (crash.capture.mode, crash.capture.engine) != (mode, wanted):
            ways[f"{crash.capture.mode} {crash.capture.engine}"] += 1
    found = [f"{n} of {len(crashes)} by {way}" for way, n in ways.items()]
    reasons = Counter(
        f"{crash.state}: {crash.capture.reason or 'no reason given'}"
        for crash in crashes
        if crash.state is not State.COMPLETE
    )
    return ", ".join([*found, *(f"{n} {reason}" for reason, n in reasons.items())])


def last_line(path: Path, containing: str = "") -> str:
    """Find the last line of a log that is not empty and contains a text; "" where there is none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return next(
        (line.strip() for line in reversed(lines) if line.strip() and containing in line), ""
    )


# -- systemd-coredump ------------------------------------------------------------------------------


class SystemdCoredump(Side):
    """Debian's package; without systemd as PID 1 its socket is held by systemd-socket-activate."""

    name = SYSTEMD
    program: Final = Path("/lib/systemd/systemd-coredump")
    settings: Final = Path("/usr/lib/sysctl.d/50-coredump.conf")
    socket: Final = Path("/run/systemd/coredump")
    dropin: Final = Path("/etc/systemd/coredump.conf.d/zz-crashd-bench.conf")
    # 0 for KeepFree= and infinity for MaxUse= both mean that nothing is ever vacuumed.
    limits: Final = (
        "[Coredump]\nStorage=external\nCompress=yes\nProcessSizeMax=128G\nExternalSizeMax=128G\n"
        "MaxUse=1024G\nKeepFree=0\n"
    )

    def __init__(self, log: Path, store: Path = Path("/var/lib/systemd/coredump")) -> None:
        self._log = log
        self._store = store
        self._listener: subprocess.Popen[bytes] | None = None
        self._others: frozenset[str] | None = None

    def start(self) -> None:
        """Listen, unless systemd does; what is in the store already stays there."""
        if not self.program.exists():
            raise NotAvailableError("not installed: apt-get install systemd-coredump")
        self.sysctls = parse_sysctls(self.settings.read_text())
        self.dropin.parent.mkdir(parents=True, exist_ok=True)
        self.dropin.write_text(self.limits)
        self._store.mkdir(parents=True, exist_ok=True)
        self._others = frozenset(os.listdir(self._store))
        if not Path("/run/systemd/system").exists():
            self._listen()

    def _listen(self) -> None:
        # One that was killed leaves its socket; the lock of the settings says that it is nobody's.
        self.socket.unlink(missing_ok=True)
        self.socket.parent.mkdir(parents=True, exist_ok=True)
        activate = shutil.which("systemd-socket-activate")
        if activate is None:
            raise NotAvailableError("there is no systemd-socket-activate")
        with self._log.open("ab") as log:
            self._listener = subprocess.Popen(
                [activate, "-a", "--seqpacket", "-l", str(self.socket), str(self.program)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        end = time.monotonic() + START_SECONDS
        while not self.socket.exists():
            if self._listener.poll() is not None or time.monotonic() > end:
                raise NotAvailableError(f"does not listen: {last_line(self._log)}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop listening, and take the limits back."""
        if self._listener is not None:
            end = time.monotonic() + STOP_SECONDS
            while self.busy() and time.monotonic() < end:
                time.sleep(0.1)
            self._listener.terminate()
            self._listener.wait()
            self._listener = None
            self.socket.unlink(missing_ok=True)
        self.clear()
        self.dropin.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or not empty: others' drop-ins
            self.dropin.parent.rmdir()

    def _stored(self) -> list[Path]:
        if self._others is None:
            return []
        # It writes to files without a name, or with one that begins with a dot.
        return [
            self._store / name
            for name in os.listdir(self._store)
            if name.startswith("core.") and name not in self._others
        ]

    def recorded(self) -> int:
        """Count the files that have their final name."""
        return len(self._stored())

    def busy(self) -> bool:
        """Look for the processes that the listener forked, one a crash."""
        if self._listener is None:
            return False
        pid = self._listener.pid
        return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    def outcome(self) -> Outcome:
        """Look at the files."""
        files = self._stored()
        stored = sum(file.stat().st_blocks * 512 for file in files)
        return Outcome(len(files), stored, stored)

    def clear(self) -> None:
        """Remove the files that came since the start."""
        for file in self._stored():
            file.unlink()


def parse_sysctls(text: str) -> Sysctls:
    """Read systemd-coredump's settings from its sysctl.d(5) file.

    Raises:
        NotAvailableError: one of them is not there.

    """
    found = dict(re.findall(r"^\s*-?([\w./]+)\s*=\s*(.*?)\s*$", text, re.MULTILINE))
    try:
        return Sysctls(found[sysctl.PATTERN], found[sysctl.PIPE_LIMIT], found[sysctl.SUID_DUMPABLE])
    except KeyError as e:
        raise NotAvailableError(f"{SystemdCoredump.settings} does not set {e}") from e


# -- the kernel alone ------------------------------------------------------------------------------


class KernelFile(Side):
    """The kernel writes the core to a file."""

    name = KERNEL
    lists = False

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def start(self) -> None:
        """Make the directory."""
        self._directory.mkdir()
        self.sysctls = Sysctls(f"{self._directory}/core.%P", MANY)

    def stop(self) -> None:
        """Do nothing: nothing runs."""

    def recorded(self) -> int:
        """Count the files."""
        return len(os.listdir(self._directory))

    def outcome(self) -> Outcome:
        """Look at the files."""
        sizes = [file.stat().st_blocks * 512 for file in self._directory.iterdir()]
        return Outcome(len(sizes), sum(sizes), sum(sizes))

    def clear(self) -> None:
        """Remove the files."""
        for file in self._directory.iterdir():
            file.unlink()


class Drain(Side):
    """The kernel writes the core into a pipe, and nobody wants it."""

    name = DRAIN
    lists = False

    def __init__(self, program: Path) -> None:
        self.sysctls = Sysctls(f"|{program}", MANY)

    def start(self) -> None:
        """Do nothing: the kernel starts the program."""

    def stop(self) -> None:
        """Do nothing: nothing runs."""

    def recorded(self) -> int:
        """Nothing is recorded."""
        return 0

    def outcome(self) -> Outcome:
        """Nothing is stored."""
        return Outcome(0, 0, 0)

    def clear(self) -> None:
        """Nothing is stored."""


def make_sides(names: Sequence[str], scratch: Path, programs: Programs) -> list[Side]:
    """Make the sides of these names, in the order of the table; none is started.

    Args:
        names: of `report.SIDES`.
        scratch: a directory with a short path: sockets and kernel.core_pattern have little room.
        programs: the compiled programs.

    """
    sides: list[Side] = [
        Crashd(MEMORY, scratch / "m", "pipe", "auto"),
        Shipping(SHIPPING, scratch / "h"),
        Crashd(STREAM, scratch / "s", "pipe", "stream"),
        Crashd(SOCKET, scratch / "k", "socket", "auto"),
        SystemdCoredump(scratch / "systemd-coredump.log"),
        KernelFile(scratch / "f"),
        Drain(programs.drain),
    ]
    return [side for side in sides if side.name in names]
