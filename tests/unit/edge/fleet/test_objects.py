"""Object storage by its one door: a directory, and what goes wrong with each kind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd.domain.fleet.outcome import Failure
from crashd.edge.fleet.objects import ObjectError, Objects

obstore = pytest.importorskip("obstore")


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(f"file://{tmp_path}")


def test_object_is_fetched_as_it_was_stored(objects: Objects) -> None:
    objects.put("a/b", b"one")
    objects.put("a/b", b"two")
    found = objects.get("a/b", 10)
    assert found is not None and found[0] == b"two" and found[1]


def test_object_with_the_known_etag_is_not_fetched_again(objects: Objects) -> None:
    objects.put("a", b"one")
    found = objects.get("a", 10)
    assert found is not None
    assert objects.get("a", 10, found[1]) is None
    objects.put("a", b"other")
    assert objects.get("a", 10, found[1]) is not None


def test_object_that_is_too_large_is_refused_unread(objects: Objects) -> None:
    objects.put("a", bytes(100))
    with pytest.raises(ObjectError, match="at most 99"):
        objects.get("a", 99)


def test_upload_that_breaks_off_leaves_no_object(objects: Objects, tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield bytes(6 << 20)
        raise OSError("the disk is broken")

    with pytest.raises(ObjectError):
        objects.put_parts("a", parts())
    with pytest.raises(ObjectError) as caught:
        objects.get("a", 1 << 30)
    assert caught.value.failure is Failure.MISSING


def test_upload_in_parts_is_whole(objects: Objects) -> None:
    pieces = [bytes([number]) * (3 << 20) for number in range(5)]
    objects.put_parts("a", iter(pieces))
    found = objects.get("a", 1 << 30)
    assert found is not None and found[0] == b"".join(pieces)


@pytest.mark.parametrize(
    ("url", "failure"),
    [
        ("file:///nonexistent/directory", Failure.MISSING),
        ("az://container", Failure.CREDENTIALS),
        ("x://y", Failure.REFUSED),
    ],
)
def test_store_that_cannot_be_opened_is_said_in_one_line(
    url: str, failure: Failure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ObjectError) as caught:
        Objects(url)
    assert caught.value.failure is failure
    assert url in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
