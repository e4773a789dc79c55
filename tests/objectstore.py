"""A real S3 service for tests: OpenStack Swift on one node, with its S3 API, on loopback.

From Debian's packages swift-proxy, swift-account, swift-container, swift-object and memcached.
Conditional puts are refused by this S3 API; crashd needs none.
"""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

KEY, SECRET, BUCKET = "crashd:fleet", "secret", "crashes"
START_SECONDS = 90
_RINGS = ("object", "container", "account")
_PROGRAMS = ("memcached", *(f"swift-{name}-server" for name in _RINGS))
_PIPELINE = "catch_errors cache listing_formats bulk s3api tempauth slo versioned_writes"
_PROXY = {
    "catch_errors": "use = egg:swift#catch_errors",
    "cache": "use = egg:swift#memcache\nmemcache_servers = 127.0.0.1:{memcached}",
    "listing_formats": "use = egg:swift#listing_formats",
    "bulk": "use = egg:swift#bulk",
    "slo": "use = egg:swift#slo",
    "versioned_writes": "use = egg:swift#versioned_writes\nallow_versioned_writes = true",
    "s3api": "use = egg:swift#s3api\ns3_acl = false\nlocation = us-east-1",
    "tempauth": "use = egg:swift#tempauth\n{users}",
}

_RING_BUILDER = """
import json, sys
from swift.cli.ringbuilder import EXIT_ERROR, main
for step in json.loads(sys.argv[1]):
    try:
        main(step)
    except SystemExit as e:
        if e.code == EXIT_ERROR:
            raise
"""


class ObjectStore:
    """The running service; `stop` and `start` make it go away and come back."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = _free_port()
        self._ports = {name: _free_port() for name in (*_RINGS, "memcached")}
        self._children: list[subprocess.Popen[bytes]] = []
        self._configure()

    @property
    def environ(self) -> dict[str, str]:
        """What leads a client to it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start it, and wait until its bucket is there."""
        command = ["memcached", "-p", str(self._ports["memcached"]), "-l", "127.0.0.1", "-m", "64"]
        self._start([*command, "-u", "root"], "memcached")
        for name in (*_RINGS, "proxy"):
            self._start([f"swift-{name}-server", str(self.directory / f"{name}-server.conf")], name)
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                self._make_bucket()
                return
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def stop(self) -> None:
        """End it; what it stores stays."""
        for child in self._children:
            child.terminate()
        for child in self._children:
            child.wait(30)
        self._children.clear()

    def _start(self, command: list[str], name: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self._children.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def _make_bucket(self) -> None:
        """Make the bucket by Swift's own API, as an administrator does."""
        base = f"http://127.0.0.1:{self.port}"
        login = {"X-Storage-User": KEY, "X-Storage-Pass": SECRET}
        request = urllib.request.Request(f"{base}/auth/v1.0", headers=login)
        with urllib.request.urlopen(request, timeout=10) as answer:
            token, url = answer.headers["X-Auth-Token"], answer.headers["X-Storage-Url"]
        put = urllib.request.Request(
            f"{url}/{BUCKET}", method="PUT", headers={"X-Auth-Token": token}
        )
        urllib.request.urlopen(put, timeout=10).close()

    def _configure(self) -> None:
        top = self.directory
        (top / "srv/d1").mkdir(parents=True)
        (top / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n"
        )
        self._make_rings()
        for name in _RINGS:
            self._write(name, f"{name}-server", f"[app:{name}-server]\nuse = egg:swift#{name}\n")
        user, group = (
            base64.b64encode(part.encode()).decode().rstrip("=") for part in KEY.split(":")
        )
        values = {
            "memcached": self._ports["memcached"],
            "users": f"user64_{user}_{group} = {SECRET} .admin",
        }
        filters = "".join(f"[filter:{name}]\n{text}\n" for name, text in _PROXY.items())
        app = "[app:proxy-server]\nuse = egg:swift#proxy\n"
        app += "allow_account_management = true\naccount_autocreate = true\n"
        self._write("proxy", f"{_PIPELINE} proxy-server", app + filters.format(**values))

    def _make_rings(self) -> None:
        """Run swift-ring-builder nine times in one process: its start takes most of its time."""
        steps = []
        for name in _RINGS:
            builder = str(self.directory / f"{name}.builder")
            device = f"r1z1-127.0.0.1:{self._ports[name]}/d1"
            for step in (["create", "8", "1", "1"], ["add", device, "1"], ["rebalance"]):
                steps.append(["swift-ring-builder", builder, *step])
        command = ["/usr/bin/python3", "-c", _RING_BUILDER, json.dumps(steps)]
        subprocess.run(command, check=True, capture_output=True)

    def _write(self, name: str, pipeline: str, rest: str) -> None:
        port = self._ports.get(name, self.port)
        (self.directory / f"{name}-server.conf").write_text(
            f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\nuser = root\n"
            f"swift_dir = {self.directory}\ndevices = {self.directory}/srv\nmount_check = false\n"
            f"[pipeline:main]\npipeline = {pipeline}\n{rest}"
        )


def why_no_store() -> str | None:
    """Tell why there can be no S3 service here; None where there can."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not installed"
    return None if os.geteuid() == 0 else "Swift is started as root"


@contextlib.contextmanager
def running_store(directory: Path) -> Iterator[ObjectStore]:
    """Run the service below a directory."""
    store = ObjectStore(directory)
    try:
        store.start()
        yield store
    finally:
        store.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
