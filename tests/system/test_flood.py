"""What one user's crashes cost another's: real uids, and a disk that is too small."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd.corehandler import SHARE_USED
from crashd.store import spool
from crashd.store.handlerfile import install_handler
from crashd.store.paths import Paths
from tests.conftest import CorePatternOwner
from tests.flood import FLOODER, OTHER, OTHERS, PROGRAM, flood
from tests.integration.handler import HandlerRun, make_root, start_handler
from tests.running import DEFAULT_CONFIG, Daemon
from tests.system.test_security import caught, die_as

MIB = 1 << 20
SUBUIDS = 20
WITH_SUBUIDS = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/subuid && exec "$@"']


@pytest.fixture
def root(core_pattern_owner: CorePatternOwner) -> Iterator[Path]:
    """A root that other users can walk through, as / is."""
    path = Path(f"/tmp/cdf{os.getpid()}")
    path.mkdir(mode=0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def small(short_tmp: Path) -> Iterator[Paths]:
    """A root of which the state is on a file system of 100 MiB."""
    state = short_tmp / "s"
    (state / "r").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", state / "r"], check=True)
    try:
        yield make_root(state / "r/x")
    finally:
        subprocess.run(["umount", "-l", state / "r"], check=True)


@pytest.mark.timeout(400)
def test_sec_81_flood_on_a_small_disk_loses_none_of_anothers_crashes(
    core_pattern_owner: CorePatternOwner,
) -> None:
    """For two minutes: `python -m tests.flood`."""
    found = flood(25)
    print("\n".join(found.report()))
    assert found.violations() == []
    assert len(found.others()) == OTHERS
    assert sum(crash["uid"] == FLOODER for crash in found.crashes) > 100


def spool_core(paths: Paths, uid: int, mib: int) -> HandlerRun:
    """Have the handler spool a dense core of a user's, with no daemon there."""
    arguments = ["1", "dense", "6", "1800000000", "1", "1", str(uid), str(uid), "0"]
    run = start_handler(paths, arguments)
    run.feed(os.urandom(mib * MIB))
    assert run.wait() == 0
    return run


def test_sec_81_spool_has_room_for_the_next_user_however_many_crashes_one_has(
    small: Paths,
) -> None:
    spool.write_limits(small, max_core=None, keep_free=10 * MIB, honour_rlimit=False)
    install_handler(small)
    for _ in range(16):
        spool_core(small, FLOODER, 8)
    disk = os.statvfs(small.spool)
    assert disk.f_bavail * disk.f_frsize > 40 * MIB
    spool_core(small, OTHER, 8)
    endings: dict[bytes, list[str | None]] = {}
    for name in spool.ready_names(small, 0):
        with spool.SpoolEntry.open(small, name) as entry:
            endings.setdefault(entry.fields()["u"], []).append(entry.ending())
    assert endings[b"%d" % OTHER] == [None]
    flooders = endings[b"%d" % FLOODER]
    assert len(flooders) == 16, "each has what is known of it"
    assert set(flooders) == {None, SHARE_USED}


def test_sec_80_subuids_and_names_of_one_user_do_not_evict_roots_only_core(root: Path) -> None:
    program, subuid = root / "dense", root / "subuid"
    subprocess.run(["gcc", "-O1", "-o", program, PROGRAM], check=True)
    subuid.write_text(f"{FLOODER}:2000000:65536\n")
    config = DEFAULT_CONFIG + '[retention.process]\nmax_use = "40M"\nkeep_free = "1M"\n'
    daemon = Daemon(root, config=config)
    daemon.start(prefix=[*WITH_SUBUIDS, str(subuid)])
    try:
        crash = caught(daemon, die_as(0, [str(program), "9"], cwd="/"))
        assert crash["state"] == "complete"
        for number in range(SUBUIDS):
            own = shutil.copy(program, root / f"dense{number}")  # a signature of its own
            caught(daemon, die_as(2000000 + number, [str(own), "8"], cwd="/"))
        daemon.crashctl("vacuum")
        states = {c["id"]: c["state"] for c in daemon.crashes()}
        assert list(states.values()).count("evicted") >= SUBUIDS - 4
        assert states[crash["id"]] == "complete"
    finally:
        daemon.stop()
