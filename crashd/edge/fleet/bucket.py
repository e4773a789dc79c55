"""Object storage as the indexer and crashctl use it: list, get, put and delete below one URL.

S3, GCS, Azure and directories by obstore; credentials by each cloud's usual chain. Every read has a
limit.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from obstore import exceptions
from obstore.store import from_url

from crashd.domain.fleet.outcome import Failure, classify_failure
from crashd.domain.text import printable
from crashd.errors import (
    ConfigError,
    FormatError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PAGE = 1000
"""Keys of one LIST request, at most."""
_TIMEOUT = "30s"
_CHUNK = 4 << 20
_CREDENTIALS = "they come from the environment or the machine's identity; see crashd-fleet(8)"


@dataclass(frozen=True, slots=True)
class Found:
    """One object in a listing."""

    key: str
    size_bytes: int
    modified: datetime
    """By the clock of the object store."""


@dataclass(frozen=True, slots=True)
class Version:
    """An object as it was when it was looked at: what is read of it later is of no other one."""

    key: str
    size_bytes: int
    etag: str | None
    """None if the store has none: a change is not noticed then."""


class Bucket:
    """The objects below one URL."""

    def __init__(self, url: str, store: "ObjectStore") -> None:
        self.url = url
        self._store = store
        self.requests = 0
        """LIST requests so far, about: what a cloud bills."""

    @classmethod
    def open(cls, url: str) -> "Bucket":
        """Open the bucket of a URL: s3://, gs://, az:// or file://; nothing is asked yet.

        Raises:
            UsageError: the URL is malformed.
            ConfigError: a setting in the environment is malformed.
            UnavailableError: a directory does not exist.

        """
        scheme = urlsplit(url).scheme
        if scheme not in ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "file", "https"):
            raise UsageError(
                f"{printable(url)!r} is not the URL of a bucket",
                hint="for example: s3://crashes, gs://crashes, az://crashes, file:///srv/crashes",
            )
        options: dict[str, Any] = {}
        if scheme != "file":
            options["client_options"] = {"timeout": _TIMEOUT, "connect_timeout": "5s"}
            options["client_options"] |= _plain_http()
            options["retry_config"] = {"max_retries": 4}
        try:
            return cls(url, from_url(url, **options))
        except exceptions.BaseError as e:
            if scheme == "file":
                raise UnavailableError(
                    f"bucket {printable(url)}: there is no such directory"
                ) from e
            raise ConfigError(f"bucket {printable(url)}: {_first_line(e)}") from e

    def check(self) -> None:
        """Ask for one key.

        Raises:
            UnavailableError: there is no such bucket, or it does not answer.
            PermissionDeniedError: the credentials are wrong.

        """
        # a host that has given an object a name which cannot be listed is no fault of the bucket's
        with contextlib.suppress(FormatError), self._guard():
            for _ in self._store.list("records/", chunk_size=1):
                break

    def prefixes(self, prefix: str) -> list[str]:
        """List the names directly below a prefix that ends in a slash."""
        with self._guard():
            self.requests += 1
            found = self._store.list_with_delimiter(prefix)["common_prefixes"]
        return [PurePosixPath(path).name for path in found]

    def list(self, prefix: str, after: str | None = None) -> Iterator[Found]:
        """List objects below a prefix, in the order of their keys, after one key.

        Raises:
            FormatError: one has a name that is no path, such as `a//b`, or is not UTF-8.

        """
        with self._guard():
            stream = self._store.list(prefix, offset=after, chunk_size=PAGE)
            self.requests += 1
            for number, page in enumerate(stream):
                self.requests += number > 0
                for meta in sorted(page, key=lambda meta: meta["path"]):
                    yield Found(meta["path"], meta["size"], meta["last_modified"])

    def get(self, key: str, max_bytes: int) -> bytes:
        """Read an object.

        Raises:
            NotFoundError: there is none.
            FormatError: it is larger than `max_bytes`.

        """
        with self._guard(key):
            result = self._store.get(key)
            if result.meta["size"] > max_bytes:
                raise FormatError(
                    f"object of {result.meta['size']} bytes, at most {max_bytes} are read"
                )
            return bytes(result.bytes())

    def look(self, key: str) -> Version:
        """Look at an object, to read parts of it.

        Raises:
            NotFoundError: there is none.

        """
        with self._guard(key):
            meta = self._store.head(key)
        return Version(key, int(meta["size"]), meta.get("e_tag"))

    def copy_to(self, version: Version, fd: int) -> None:
        """Append an object to a file.

        Raises:
            NotFoundError: it is gone.
            FormatError: it has changed.

        """
        for start in range(0, version.size_bytes, _CHUNK):
            view = memoryview(self.read_range(version, start, _CHUNK))
            while view:
                view = view[os.write(fd, view) :]

    def read_range(self, version: Version, start: int, size_bytes: int) -> bytes:
        """Read a part of an object; short at its end.

        Raises:
            NotFoundError: it is gone.
            FormatError: it has changed.

        """
        end = min(start + size_bytes, version.size_bytes)
        if start >= end:
            return b""
        options: dict[str, Any] = {"range": (start, end)}
        if version.etag is not None:
            options["if_match"] = version.etag
        with self._guard(version.key):
            return bytes(self._store.get(version.key, options=options).bytes())  # type: ignore[arg-type]

    def put(self, key: str, data: bytes) -> None:
        """Write an object, and replace an older one."""
        with self._guard(key):
            self._store.put(key, data)

    def delete(self, key: str) -> None:
        """Delete an object; one that does not exist is no error."""
        with contextlib.suppress(NotFoundError), self._guard(key):
            self._store.delete(key)

    @contextlib.contextmanager
    def _guard(self, key: str = "") -> Iterator[None]:
        url = printable(self.url)
        try:
            yield
        except (FileNotFoundError, exceptions.NotFoundError) as e:
            if key and "NoSuchBucket" not in str(e):
                raise NotFoundError(f"no object {printable(key)} in the bucket") from e
            raise UnavailableError(f"bucket {url}: there is none") from e
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as e:
            raise PermissionDeniedError(f"bucket {url}: access denied", hint=_CREDENTIALS) from e
        except exceptions.PreconditionError as e:
            raise FormatError(
                f"object {printable(key)} has changed while it was read",
                hint="its host has replaced it: try again",
            ) from e
        except exceptions.InvalidPathError as e:
            raise FormatError(f"bucket {url}: {_first_line(e)}") from e
        except (exceptions.BaseError, OSError) as e:
            text = str(e)
            if "NoSuchBucket" in text:
                raise UnavailableError(f"bucket {url}: there is none") from e
            if classify_failure(text) is Failure.CREDENTIALS:
                line = f"bucket {url}: no credentials that it takes: {_first_line(e)}"
                raise PermissionDeniedError(line, hint=_CREDENTIALS) from e
            raise UnavailableError(f"bucket {url}: {_first_line(e)}") from e


def _plain_http() -> dict[str, Any]:
    """Allow HTTP without TLS only if the endpoint in the environment is such a URL."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
    return (
        {"allow_http": True}
        if any(os.environ.get(n, "").startswith("http://") for n in names)
        else {}
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[0][:300]) if lines else type(error).__name__
