"""One host that sends its crashes: its store, the daemon's part of it, and a real crashd-ship."""

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import obstore
from obstore.store import from_url

from crashd.daemon.after.captures import Captures
from crashd.daemon.fleet.rules import Rules
from crashd.daemon.fleet.shipping import Shipping, read_host_id
from crashd.domain.crash.model import Core, Crash
from crashd.domain.fleet.choice import Choice, Cores
from crashd.domain.fleet.keys import parse_core_key, parse_records_key
from crashd.domain.fleet.lines import Line, parse_line
from crashd.domain.fleet.orders import ShipSettings
from crashd.edge.web.exporter import Exporter
from crashd.store import changes, entry
from crashd.store.corefile import unzstd
from crashd.store.index import Index
from crashd.store.paths import Paths
from tests.builders.crashes import BOOT_ID
from tests.running import wait_until

MACHINE_ID = "9c3f0b8d5a4e4f1c8b7a6d5e4f3c2b1a"
UNPACKED_MAX = 256 << 20


class Shipper:
    """A crashd-ship of its own."""

    def __init__(self, root: Path, environ: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.environ = dict(environ or {})
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens on the socket that it makes itself."""
        program = "import sys; from crashd.ship.main import main; sys.exit(main())"
        with (self.root / "ship.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, "--root", str(self.root)],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, **self.environ},
            )
        wait_until(self._listens, 30, "crashd-ship listens")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(str(Paths(self.root).ship_socket)) == 0

    def kill(self) -> None:
        """End it as the kernel would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None


def is_all_sent(paths: Paths) -> bool:
    """Return whether everything of a root is sent."""
    with Index.open(paths.index, readonly=True) as index:
        if not changes.is_watched(index) or changes.read_changes(index):
            return False
    outbox = sqlite3.connect(paths.outbox)  # where what was taken is, before it is dropped
    with contextlib.closing(outbox):
        tables = [f"SELECT 1 FROM {table}" for table in ("pending", "batch", "core")]
        return outbox.execute(" UNION ALL ".join(tables)).fetchone() is None


class Host:
    """A root with crashes in it, the shipping thread, and what it has counted."""

    def __init__(self, root: Path, url: str, machine_id: str = MACHINE_ID) -> None:
        self.paths = Paths(root)
        self.paths.runtime_dir.mkdir(parents=True, exist_ok=True)
        self.paths.machine_id.parent.mkdir(parents=True, exist_ok=True)
        self.paths.machine_id.write_text(machine_id + "\n")
        entry.prepare(self.paths)
        self.host = read_host_id(self.paths)
        self.captures = Captures()
        self.exporter = Exporter("1")
        self.rules = Rules(
            ShipSettings(url, None),
            Choice(Cores.FULL, 1000, False, True, frozenset()),
            {"role": "test"},
        )
        self.shipping: Shipping | None = None

    def start(self, **choice: Any) -> None:
        """Start the thread."""
        self.rules = replace(self.rules, choice=replace(self.rules.choice, **choice))
        with Index.open(self.paths.index):
            pass  # the daemon's own thread makes it
        self.shipping = Shipping(self.paths, self.exporter, BOOT_ID, self.captures)
        self.shipping.configure(self.rules)
        self.shipping.start()

    def stop(self) -> None:
        """End the thread."""
        if self.shipping is not None:
            self.shipping.stop()
            self.shipping = None

    def add(self, crash: Crash, core: bytes | None = None) -> Crash:
        """Put a crash into the store, and then into the index."""
        if core is not None:
            crash = replace(crash, core=Core("core.zst", 10, len(core), 10, 10, True))
        else:
            crash = replace(crash, core=Core())
        with entry.create(self.paths, crash) as made:
            if core is not None:
                made.write_file("core.zst", core)
            crash = made.write(crash, sync=False)
        self.put(crash)
        return crash

    def change(self, crash_id: str, **values: Any) -> None:
        """Change a record, and its row."""
        _, crash = entry.change(self.paths, crash_id, lambda before: replace(before, **values))
        self.put(crash)

    def put(self, *crashes: Crash) -> None:
        """Put rows into the index."""
        with Index.open(self.paths.index) as index:
            index.put(crashes)

    def is_idle(self) -> bool:
        """Return whether everything is sent."""
        return is_all_sent(self.paths)

    def metric(self, name: str, label: str) -> int:
        """Return the value of one metric with one label."""
        return int(self.exporter._values[name][(label,)])


class Bucket:
    """What arrived in the store; reads it as the fleet does."""

    def __init__(self, url: str, environ: Mapping[str, str] | None = None) -> None:
        given: Any = {name.lower(): value for name, value in (environ or {}).items()}
        if given:
            given.pop("aws_allow_http")
            given["client_options"] = {"allow_http": True}
        self.store = from_url(url, **given)

    def keys(self, prefix: str = "") -> list[str]:
        """List the names of objects."""
        found = obstore.list(self.store, prefix or None).collect()
        return sorted(str(one["path"]) for one in found)

    def get(self, key: str) -> bytes:
        """Fetch an object."""
        return bytes(obstore.get(self.store, key).bytes())

    def put(self, key: str, data: bytes) -> None:
        """Store an object, as the indexer does a policy."""
        obstore.put(self.store, key, data)

    def lines(self) -> list[Line]:
        """Read all lines of all hosts; each must be well formed."""
        found = []
        for key in self.keys("records"):
            host = parse_records_key(key).host
            raw = unzstd(self.get(key), UNPACKED_MAX)
            assert raw.endswith(b"\n")
            found += [parse_line(line, host) for line in raw.splitlines()]
        return found

    def newest(self) -> dict[str, Line]:
        """Return the line of each crash that counts; the same revision must say the same."""
        newest: dict[str, Line] = {}
        for line in self.lines():
            known = newest.get(line.id)
            if known is not None and known.revision == line.revision:
                assert known == line
            if known is None or known.revision <= line.revision:
                newest[line.id] = line
        return newest

    def cores(self) -> dict[str, str]:
        """Return the names of cores' objects, by the ids of their crashes."""
        return {parse_core_key(key).crash_id: key for key in self.keys("cores")}

    def revisions(self) -> Counter[str]:
        """Count the different revisions of each crash."""
        return Counter(
            crash_id for crash_id, _ in {(line.id, line.revision) for line in self.lines()}
        )
