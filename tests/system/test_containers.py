"""One bug in two containers, as a child of its shell and as PID 1, is one bug."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import PLAIN_CONFIG, Daemon
from tests.system.conftest import raise_core_limit
from tests.system.test_programs import Programs


@pytest.fixture
def daemon(core_pattern_lock: None, short_tmp: Path) -> Iterator[Daemon]:
    (short_tmp / "r").mkdir()
    with Daemon(short_tmp / "r", config=PLAIN_CONFIG) as running:
        yield running


@pytest.fixture
def roots(short_tmp: Path) -> Iterator[list[Path]]:
    """Two roots of containers, each with its own layer over the host's files."""
    made: list[Path] = []
    try:
        for name in ("one", "two"):
            upper, work, root = (short_tmp / name / part for part in ("upper", "work", "root"))
            for directory in (upper, work, root):
                directory.mkdir(parents=True)
            options = f"lowerdir=/,upperdir={upper},workdir={work}"
            subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", root], check=True)
            made.append(root)
        yield made
    finally:
        for root in made:
            subprocess.run(["umount", root], check=True)


@pytest.mark.parametrize("word", ["do_assert", "null_strlen"])
def test_two_containers_of_one_bug_have_one_signature(
    daemon: Daemon, roots: list[Path], tmp_path: Path, word: str
) -> None:
    program = Programs(tmp_path).get("c1")
    found = []
    for root, script in zip(roots, (f"/c1 {word}; true", f"exec /c1 {word}"), strict=True):
        shutil.copy(program, root / "c1")
        known = {row["id"] for row in daemon.crashes()}
        subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "chroot", root, "sh", "-c", script],
            preexec_fn=raise_core_limit,
            check=False,
        )
        daemon.wait_for(len(known) + 1)
        (crash_id,) = (
            row["id"]
            for row in daemon.crashes()
            if row["id"] not in known and row["comm"] == "c1"  # unshare repeats the signal
        )
        daemon.crashctl("analyze", crash_id)
        found.append(json.loads(daemon.crashctl("info", "--json", crash_id).stdout))
    first, second = found
    assert first["title"].partition(",")[2] == second["title"].partition(",")[2] != ""
    assert first["signature"] == second["signature"]
    assert first["root"] != second["root"]
