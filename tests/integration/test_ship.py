"""Crashes on their way to object storage: a directory, and a real S3 service."""

import io
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.daemon.fleet import policies, shipping
from crashd.domain.crash.model import Kind, State
from crashd.domain.fleet import outcome
from crashd.domain.fleet.choice import Cores
from crashd.domain.fleet.keys import SIGNATURES, want_key
from crashd.domain.fleet.lines import CoreReason, DeletedBy
from crashd.domain.fleet.orders import ShipSettings
from crashd.domain.fleet.policy import Want, build_signatures, build_want
from crashd.edge.fleet import age
from crashd.store.catalog import Catalog, reindex
from crashd.store.corefile import CoreWriter, read_core, read_frames, zstd_writer
from crashd.store.handlerfile import install_handler
from crashd.store.index import Index
from tests.builders.crashes import build_crash
from tests.builders.elfcore import CoreSegment, build_core
from tests.builders.kdumps import save
from tests.integration.handler import start_handler
from tests.objectstore import BUCKET, ObjectStore, running_store, why_no_store
from tests.running import DEFAULT_CONFIG, Daemon, wait_until
from tests.shipping import MACHINE_ID, Bucket, Host, Shipper

SIGNATURE = "p2-0123456789abcdef"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for as little as possible."""
    monkeypatch.setattr(shipping, "BATCH_SECONDS", 0.2)
    monkeypatch.setattr(shipping, "BUSY_SECONDS", 0.2)
    monkeypatch.setattr(shipping, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(policies, "POLL_SECONDS", 0.3)
    monkeypatch.setattr(outcome, "RETRY_FIRST_SECONDS", 0.05)
    monkeypatch.setattr(outcome, "RETRY_MAX_SECONDS", 0.4)


@pytest.fixture
def host(short_tmp: Path, quick: None) -> Iterator[Host]:
    store = short_tmp / "store"
    store.mkdir()
    made = Host(short_tmp / "root", f"file://{store}")
    yield made
    made.stop()


@pytest.fixture
def shipper(host: Host) -> Iterator[Shipper]:
    made = Shipper(host.paths.root)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def bucket(host: Host) -> Bucket:
    return Bucket(host.rules.ship.url)


def settle(host: Host, seconds: float = 60) -> None:
    wait_until(host.is_idle, seconds, "everything is sent")


def test_crash_arrives_in_two_objects_with_its_core(
    host: Host, shipper: Shipper, bucket: Bucket
) -> None:
    host.start()
    crash = host.add(build_crash(1, signature=SIGNATURE), b"core as stored")
    settle(host)
    line = bucket.newest()[crash.id]
    assert line.crash == crash and line.labels == {"role": "test"}
    assert line.files.core == bucket.cores()[crash.id]
    assert bucket.get(line.files.core) == b"core as stored"
    assert len(bucket.keys()) == 2


def test_each_revision_arrives_and_a_reindex_sends_nothing_again(
    host: Host, shipper: Shipper, bucket: Bucket
) -> None:
    host.start()
    kept = host.add(build_crash(1, signature=SIGNATURE), b"x")
    gone, old = host.add(build_crash(2)), host.add(build_crash(3))
    settle(host)
    host.change(kept.id, pinned=True)
    with Index.open(host.paths.index) as index:
        Catalog(host.paths, index).delete([gone.id])
        shutil.rmtree(host.paths.crashes / old.id)
        index.remove([old.id])  # as retention does
    settle(host)
    newest = bucket.newest()
    assert newest[kept.id].crash == replace(kept, pinned=True)
    deletion = newest[gone.id].deletion
    assert deletion is not None and deletion.by is DeletedBy.OPERATOR
    assert newest[old.id].deletion is None
    before = bucket.keys()
    reindex(host.paths)
    host.paths.index.unlink()  # and once more from nothing, as after an update of crashd
    reindex(host.paths)
    wait_until(lambda: host.is_idle(), 30, "the new index is compared")
    assert bucket.keys() == before
    host.change(kept.id, pinned=False)
    settle(host)
    assert bucket.revisions() == {kept.id: 3, gone.id: 2, old.id: 1}


def test_storm_takes_few_requests(host: Host, shipper: Shipper, bucket: Bucket) -> None:
    crashes = [host.add(build_crash(n)) for n in range(600)]
    host.start()
    settle(host)
    assert set(bucket.newest()) == {crash.id for crash in crashes}
    assert len(bucket.keys("records")) <= 6


def test_shipper_killed_again_and_again_loses_nothing(
    host: Host, shipper: Shipper, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "LINES_MAX", 5)
    dice = random.Random(7)
    host.start()
    crashes = []
    for number in range(40):
        crashes.append(host.add(build_crash(number), b"core %d" % number))
        if number % 2:
            time.sleep(dice.uniform(0, 0.1))
            shipper.kill()
            shipper.start()
    settle(host, 90)
    newest = bucket.newest()
    assert {crash.id: newest[crash.id].crash for crash in crashes} == {c.id: c for c in crashes}
    assert set(bucket.cores()) == set(newest)
    assert bucket.revisions() == {crash.id: 1 for crash in crashes}
    assert host.metric("crashd_ship_failures", "shipper") > 0


def test_daemon_that_restarts_goes_on_where_it_was(
    host: Host, shipper: Shipper, bucket: Bucket
) -> None:
    shipper.kill()
    host.start()
    crashes = [host.add(build_crash(number), b"x") for number in range(5)]
    wait_until(lambda: not host.is_idle(), 30, "crashes wait")
    host.stop()
    crashes += [host.add(build_crash(number), b"x") for number in range(5, 8)]
    shipper.start()
    host.start()
    settle(host)
    assert bucket.revisions() == {crash.id: 1 for crash in crashes}


def test_store_that_is_away_is_waited_for_and_said_once(
    host: Host, shipper: Shipper, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "crashd.fleet")
    store = Path(host.rules.ship.url.removeprefix("file://"))
    away = store.rename(store.with_name("away"))
    host.start()
    crash = host.add(build_crash(1), b"x")
    told = host.shipping
    assert told is not None
    wait_until(
        lambda: host.metric("crashd_ship_failures", "missing") >= 3, 30, "it was tried thrice"
    )
    found = told.describe()
    assert found is not None and found["failure"] == "missing" and found["waiting"] == 1
    assert found["oldest_ns"] is not None
    away.rename(store)
    settle(host)
    assert bucket.newest()[crash.id].crash == crash
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1 and "no such bucket" in warnings[0] and "\n" not in warnings[0]


def test_cores_and_environments_leave_encrypted(
    host: Host, shipper: Shipper, bucket: Bucket
) -> None:
    pyrage = pytest.importorskip("pyrage")
    secret = pyrage.x25519.Identity.generate()
    identities = age.parse_identities(f"# a comment\n{secret}\n", "key")
    ship = replace(host.rules.ship, recipients=(str(secret.to_public()),))
    host.rules = replace(host.rules, ship=ship)
    small, large = b"small core", os.urandom(11 << 20)
    host.start()
    environ = (b"TOKEN=hunter2", b"BAD=\xff")
    first = host.add(build_crash(1, environ=environ), small)
    second = host.add(build_crash(2), large)
    settle(host)
    newest = bucket.newest()
    for crash, core in ((first, small), (second, large)):
        key = newest[crash.id].files.core
        assert key is not None and key.endswith(".core.zst.age")
        opened = io.BytesIO()
        age.decrypt_stream(io.BytesIO(bucket.get(key)), opened, identities)
        assert opened.getvalue() == core
    line = newest[first.id]
    assert line.crash is not None and line.crash.environ is None and line.environ_age is not None
    assert age.decrypt_environ(line.environ_age, identities) == environ
    for key in bucket.keys("records"):
        assert b"hunter2" not in bucket.get(key)


def test_mini_cores_are_cut_before_they_leave(
    host: Host, shipper: Shipper, bucket: Bucket, tmp_path: Path
) -> None:
    core = build_core(segments=[CoreSegment(0x400000, os.urandom(2 << 20))])
    with (tmp_path / "core").open("w+b") as file:
        writer = CoreWriter(file.fileno(), level=3, threads=0)
        writer.write(memoryview(core))
        writer.finish()
        stored = (tmp_path / "core").read_bytes()
    host.start(cores=Cores.MINI)
    crash = host.add(build_crash(1), stored)
    settle(host)
    files = bucket.newest()[crash.id].files
    assert files.mini and files.core is not None
    (tmp_path / "mini").write_bytes(bucket.get(files.core))
    with (tmp_path / "mini").open("rb") as file:
        mini = b"".join(read_core(file.fileno()))
    assert mini[:4] == b"\x7fELF" and len(mini) < len(core) // 4


def test_kernels_dump_and_log_are_packed(
    host: Host, shipper: Shipper, bucket: Bucket, short_tmp: Path
) -> None:
    dumps = short_tmp / "crash"
    dumps.mkdir(mode=0o755)
    saved = save(dumps, "202601020304", b"[1.0] Kernel panic\n" * 1000)
    kernel = {
        "path": str(saved),
        "inode": saved.stat().st_ino,
        "dump": "dump.202601020304",
        "log_file": "dmesg.202601020304",
    }
    first = build_crash(1, kind=Kind.KERNEL, kernel=kernel)
    host.start(kernel_dumps=True)
    host.add(first)
    settle(host)
    files = bucket.newest()[first.id].files
    for key, name in ((files.core, kernel["dump"]), (files.log, kernel["log_file"])):
        assert key is not None
        packed = io.BytesIO(bucket.get(key))
        assert b"".join(read_frames(packed)) == (saved / str(name)).read_bytes()
    host.stop()
    host.start(kernel_dumps=False)
    other = host.add(build_crash(2, kind=Kind.KERNEL, kernel=kernel))
    settle(host)
    files = bucket.newest()[other.id].files
    assert files.reason is CoreReason.POLICY and files.core is None
    assert files.log in bucket.keys("cores")


def test_fleet_says_what_is_enough_what_it_wants_and_what_must_go(
    host: Host, shipper: Shipper, bucket: Bucket
) -> None:
    packed = io.BytesIO()
    with zstd_writer(packed) as writer:
        writer.write(build_signatures([SIGNATURE]))
    bucket.put(SIGNATURES, packed.getvalue())
    host.start()
    assert host.shipping is not None
    wait_until(lambda: host.metric("crashd_ship_sent", "policy") > 0, 30, "policies are fetched")
    crash = host.add(build_crash(1, signature=SIGNATURE), b"the core")
    other = host.add(build_crash(2, signature=SIGNATURE, pinned=True), b"other")
    settle(host)
    assert bucket.newest()[crash.id].files.reason is CoreReason.ENOUGH and not bucket.cores()
    unknown = build_crash(9).id
    want = build_want(Want((crash.id,), (other.id, unknown)))
    bucket.put(want_key(host.host), want)
    wait_until(lambda: crash.id in bucket.cores(), 30, "the core is sent")
    wait_until(lambda: not (host.paths.crashes / other.id).exists(), 30, "the crash is deleted")
    settle(host)
    newest = bucket.newest()
    assert newest[crash.id].files.core == bucket.cores()[crash.id]
    assert set(bucket.cores()) == {crash.id}
    for crash_id in (other.id, unknown):
        deletion = newest[crash_id].deletion
        assert deletion is not None and deletion.by is DeletedBy.FLEET


@pytest.mark.parametrize("raw", [b"\x00" * 100, b"{}", b'{"version":1,"deleted":["../../etc"]}'])
def test_policy_of_a_hostile_writer_changes_nothing(
    host: Host, shipper: Shipper, bucket: Bucket, raw: bytes
) -> None:
    bucket.put(want_key(host.host), raw)
    bucket.put(SIGNATURES, raw)
    crash = host.add(build_crash(1, signature=SIGNATURE), b"x")
    host.start()
    wait_until(lambda: host.metric("crashd_ship_failures", "refused") > 0, 30, "it is refused")
    wait_until(lambda: crash.id in bucket.cores(), 30, "the crash is sent all the same")
    assert (host.paths.crashes / crash.id).exists()


def test_core_deleted_before_it_was_sent_is_counted_and_said_in_its_line(
    host: Host, shipper: Shipper, bucket: Bucket
) -> None:
    shipper.kill()
    host.start()
    crash = host.add(build_crash(1), b"x")
    assert host.shipping is not None
    wait_until(
        lambda: (host.shipping.describe() or {}).get("cores_waiting") == 1,  # type: ignore[union-attr]
        30,
        "its core waits",
    )
    (host.paths.crashes / crash.id / "core.zst").unlink()
    shipper.start()
    wait_until(lambda: host.metric("crashd_ship_lost", "core_deleted") == 1, 30, "it is lost")
    settle(host)
    assert bucket.newest()[crash.id].files.reason is CoreReason.NO_CORE


def test_crashctl_and_the_daemon_send_what_they_change(short_tmp: Path) -> None:
    store = short_tmp / "store"
    store.mkdir()
    fleet = f'[fleet]\nurl = "file://{store}"\ncores = "full"\nlabels = ["role=db"]\n'
    shipper = Shipper(short_tmp)
    daemon = Daemon(short_tmp, "--no-register", config=DEFAULT_CONFIG + fleet)
    daemon.paths.machine_id.write_text(MACHINE_ID + "\n")
    daemon.paths.runtime_dir.mkdir(parents=True, exist_ok=True)
    shipper.start()
    try:
        with daemon:
            install_handler(daemon.paths)
            run = start_handler(daemon.paths, ["7", "prog", "11", "1800000000"])
            run.feed(build_core(segments=[CoreSegment(0x400000, os.urandom(9000))]))
            assert run.wait() == 0
            (row,) = daemon.wait_for(1)
            bucket = Bucket(f"file://{store}")
            wait_until(lambda: row["id"] in bucket.newest(), 30, "the crash is sent")
            # its line announces the core, and both are sent at the same time
            wait_until(lambda: row["id"] in bucket.cores(), 30, "the core is sent")
            line = bucket.newest()[row["id"]]
            assert line.crash is not None and line.crash.state is State.COMPLETE
            assert line.labels == {"role": "db"} and len(bucket.keys()) == 2
            status = json.loads(daemon.crashctl("status", "--json", check=False).stdout)
            assert status["fleet"]["url"] == f"file://{store}"
            assert status["fleet"]["failure"] is None
            daemon.crashctl("delete", row["id"])
            wait_until(lambda: bucket.newest()[row["id"]].deletion is not None, 30, "it is said")
    finally:
        shipper.kill()


# ---- a real S3 service ----


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    if (why := why_no_store()) is not None:
        pytest.skip(why)
    with running_store(tmp_path_factory.mktemp("swift")) as running:
        yield running


def test_s3_gets_all_of_it_over_failures_of_every_kind(
    short_tmp: Path, quick: None, service: ObjectStore
) -> None:
    url = f"s3://{BUCKET}/fleet"
    host = Host(short_tmp, f"s3://no{BUCKET}/fleet")
    shipper = Shipper(short_tmp, {**service.environ, "AWS_SECRET_ACCESS_KEY": "wrong"})
    shipper.start()
    host.start()
    bucket = Bucket(url, service.environ)
    large = os.urandom(12 << 20)
    crashes = [host.add(build_crash(1), large), host.add(build_crash(2), b"small")]
    try:
        wait_until(lambda: failures(host, "credentials") > 0, 30, "the credentials are wrong")
        shipper.kill()
        shipper.environ = service.environ
        shipper.start()
        wait_until(lambda: failures(host, "missing") > 0, 30, "there is no such bucket")
        service.stop()
        assert host.shipping is not None
        host.shipping.configure(replace(host.rules, ship=ShipSettings(url, 64 << 20)))
        wait_until(lambda: failures(host, "network") > 0, 60, "the service is away")
        crashes += [host.add(build_crash(number), b"x") for number in range(3, 60)]
        service.start()
        wait_until(lambda: len(bucket.newest()) > 2, 60, "it is back")
        shipper.kill()
        shipper.start()
        settle(host, 90)
        assert bucket.revisions() == {crash.id: 1 for crash in crashes}
        cores = bucket.cores()
        assert set(cores) == {crash.id for crash in crashes}
        assert bucket.get(cores[crashes[0].id]) == large
        assert not host.exporter.ship_losses()
    finally:
        host.stop()
        shipper.kill()


def failures(host: Host, reason: str) -> int:
    return host.metric("crashd_ship_failures", reason)
