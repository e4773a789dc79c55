"""One order carried out: what arrives is what was handed over, packed and encrypted as asked."""

import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.domain.fleet.orders import Answer, Get, Put
from crashd.domain.fleet.outcome import Failure, What
from crashd.edge.fleet import age
from crashd.edge.fleet.objects import PART_BYTES, Objects
from crashd.ship.pace import Pace
from crashd.ship.uploads import Uploader
from crashd.store.corefile import read_frames

pytest.importorskip("obstore")
LARGE = os.urandom(PART_BYTES * 2 + 12345)


@pytest.fixture
def uploader(tmp_path: Path) -> Uploader:
    (tmp_path / "store").mkdir()
    objects = Objects(f"file://{tmp_path}/store")
    return Uploader(objects, objects, Pace(None), (), lambda: False)


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[[bytes], int]:
    def make(data: bytes) -> int:
        path = tmp_path / "file"
        path.write_bytes(data)
        return os.open(path, os.O_RDONLY)

    return make


def ignore(answer: Answer) -> None:
    del answer


@pytest.mark.parametrize("data", [b"", b"small", LARGE])
@pytest.mark.parametrize("pack", [False, True])
def test_put_stores_what_is_in_the_file(
    uploader: Uploader, file_of: Callable[[bytes], int], tmp_path: Path, data: bytes, pack: bool
) -> None:
    fd = file_of(data)
    answer = uploader.put(Put(1, What.CORE, "a/b", pack=pack), fd, ignore)
    os.close(fd)  # still ours
    assert answer.failure is None and answer.over, answer
    stored = (tmp_path / "store/a/b").read_bytes()
    assert answer.bytes == len(stored)
    assert (b"".join(read_frames(io.BytesIO(stored))) if pack else stored) == data


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("data", [b"small", LARGE])
def test_put_encrypts(
    uploader: Uploader, file_of: Callable[[bytes], int], tmp_path: Path, data: bytes, pack: bool
) -> None:
    pyrage = pytest.importorskip("pyrage")
    secret = pyrage.x25519.Identity.generate()
    recipients = tuple(age.parse_recipients([str(secret.to_public())]))
    uploader = replace(uploader, recipients=recipients)
    fd = file_of(data)
    answer = uploader.put(Put(1, What.CORE, "a", encrypt=True, pack=pack), fd, ignore)
    os.close(fd)
    assert answer.failure is None, answer
    opened = io.BytesIO()
    stored = (tmp_path / "store/a").read_bytes()
    age.decrypt_stream(io.BytesIO(stored), opened, age.parse_identities(str(secret), "key"))
    plain = opened.getvalue()
    assert (b"".join(read_frames(io.BytesIO(plain))) if pack else plain) == data


def test_put_of_a_file_that_cannot_be_read_stores_nothing(
    uploader: Uploader, tmp_path: Path
) -> None:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    fd = os.open(path, os.O_WRONLY)
    for encrypt in (False, True):
        answer = uploader.put(Put(1, What.CORE, "a", encrypt=encrypt), fd, ignore)
        assert answer.failure is not None and answer.over
    os.close(fd)
    assert not (tmp_path / "store/a").exists()


def test_put_gives_up_when_the_daemon_is_gone(
    uploader: Uploader, file_of: Callable[[bytes], int], tmp_path: Path
) -> None:
    fd = file_of(LARGE)
    gone = replace(uploader, is_abandoned=lambda: True)
    answer = gone.put(Put(1, What.CORE, "a", pack=True), fd, ignore)
    os.close(fd)
    assert answer.failure is not None
    assert not (tmp_path / "store/a").exists()


def test_put_tells_how_far_it_is(uploader: Uploader, file_of: Callable[[bytes], int]) -> None:
    told: list[Answer] = []
    fd = file_of(LARGE)
    uploader.put(Put(7, What.CORE, "a"), fd, told.append)
    os.close(fd)
    assert [answer.bytes for answer in told] == sorted({answer.bytes for answer in told})
    assert told[-1].bytes == len(LARGE)
    assert all(answer.job == 7 and not answer.over for answer in told)


def test_get_fills_the_file_with_what_is_new(uploader: Uploader, tmp_path: Path) -> None:
    uploader.objects.put("p", b"policy")
    with (tmp_path / "target").open("w+b") as target:
        answer = uploader.get(Get(1, What.POLICY, "p", None, 100), target.fileno())
        assert answer.fetched and answer.bytes == 6 and answer.failure is None
        assert (tmp_path / "target").read_bytes() == b"policy"
        again = uploader.get(Get(2, What.POLICY, "p", answer.etag, 100), target.fileno())
        assert not again.fetched and again.failure is None
        missing = uploader.get(Get(3, What.POLICY, "q", None, 100), target.fileno())
        assert missing.failure is Failure.MISSING
