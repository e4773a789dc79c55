"""A crash packed on one host and opened on another, where its program never was."""

import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from tests.running import DEFAULT_CONFIG, Daemon, crashctl
from tests.system.conftest import raise_core_limit
from tests.system.test_analysis import compile_program


@pytest.fixture
def daemon(core_pattern_lock: None, short_tmp: Path) -> Iterator[Daemon]:
    with Daemon(short_tmp, config=DEFAULT_CONFIG) as running:
        yield running


def members(path: Path) -> dict[str, bytes]:
    raw = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return {m.name: (tar.extractfile(m) or io.BytesIO()).read() for m in tar}


def rewrite(path: Path, changed: dict[str, bytes], *, link: str | None = None) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, data in changed.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if link is not None:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/shadow"
            tar.addfile(info)
    path.write_bytes(zstandard.compress(raw.getvalue()))


def stack(path: Path, root: Path) -> list[str]:
    """Let gdb show the stack of a bundle: the functions' names."""
    done = crashctl(root, "debug", "-A", "-batch -ex bt", str(path))
    # the first #0 is what gdb shows of its own
    shown = done.stdout.rpartition("#0 ")[2].splitlines()
    lines = ["#0 " + shown[0], *(line for line in shown[1:] if line.startswith("#"))]
    return [line.split(" (")[0].split()[-1] for line in lines]


def test_bundle_opens_elsewhere_with_the_same_stack(daemon: Daemon, tmp_path: Path) -> None:
    program = compile_program("causes", tmp_path)
    subprocess.run([program, "null_read"], preexec_fn=raise_core_limit, check=False)
    daemon.wait_for(1)
    target = tmp_path / "crash.tar.zst"
    done = daemon.crashctl("bundle", "causes", "-o", str(target))
    assert "the core and" in done.stderr
    assert target.stat().st_mode & 0o777 == 0o600
    found = members(target)
    sums = dict(line.split("  ")[::-1] for line in found["SHA256SUMS"].decode().splitlines())
    assert sums == {
        name: hashlib.sha256(data).hexdigest()
        for name, data in found.items()
        if name != "SHA256SUMS"
    }
    assert json.loads(found["crash.json"])["comm"] == "causes"
    paths = [module["path"] for module in json.loads(found["modules.json"])]
    assert str(program) in paths
    assert any("libc.so" in path for path in paths)
    program.unlink()
    other = tmp_path / "other"  # no store, no daemon
    other.mkdir()
    assert stack(target, other)[:2] == ["null_read", "main"]
    shared = crashctl(other, "debug", "-A", "-batch -ex 'info sharedlibrary'", str(target)).stdout
    assert re.search(r" /proc/self/fd/\d+/\S*libc\.so", shared), "the bundle's, not the host's"
    refused = daemon.crashctl("bundle", "causes", "-o", str(target), check=False)
    assert refused.returncode == 2
    daemon.crashctl("bundle", "causes", "-f", "-o", str(target))
    assert str(program) not in [m["path"] for m in json.loads(members(target)["modules.json"])]


def test_bundle_that_is_hostile_reaches_nothing_outside(daemon: Daemon, tmp_path: Path) -> None:
    program = compile_program("causes", tmp_path)
    subprocess.run([program, "null_read"], preexec_fn=raise_core_limit, check=False)
    daemon.wait_for(1)
    good = tmp_path / "good.tar.zst"
    daemon.crashctl("bundle", "-1", "-o", str(good))
    found, bad = members(good), tmp_path / "bad.tar.zst"

    def refused(why: str) -> None:
        done = crashctl(tmp_path, "debug", "-A", "-batch", str(bad), check=False)
        assert done.returncode == 1, done.stderr
        assert why in done.stderr
        assert "Traceback" not in done.stderr

    rewrite(bad, {**found, "../../escaped": b"x"})
    refused("has an unexpected member")
    rewrite(bad, {**found, "/etc/escaped": b"x"})
    refused("has an unexpected member")
    rewrite(bad, found, link="files/0/link")
    refused("which is not a file")
    rewrite(bad, {**found, "core.zst": found["core.zst"][:-9] + b"x" * 9})
    refused("core.zst in the bundle is damaged")
    rewrite(bad, {name: data for name, data in found.items() if name != "core.zst"})
    refused("has no core")
    bad.write_bytes(good.read_bytes()[:-1000])
    refused("is not a bundle")
    bad.write_bytes(b"nonsense")
    refused("is not a bundle")
    # a path that leads up is laid out nowhere
    modules = json.loads(found["modules.json"])
    modules[0]["path"] = "/../../escaped"
    evil = json.dumps(modules).encode()
    text = found["SHA256SUMS"].decode().splitlines()
    text = [line for line in text if not line.endswith("  modules.json")]
    text.append(f"{hashlib.sha256(evil).hexdigest()}  modules.json")
    sums = ("\n".join(text) + "\n").encode()
    rewrite(bad, {**found, "modules.json": evil, "SHA256SUMS": sums})
    crashctl(tmp_path, "debug", "-A", "-batch", str(bad))
    assert not list(tmp_path.rglob("escaped"))
    assert not Path("/var/tmp/escaped").exists()
