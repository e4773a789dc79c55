"""How sending something to object storage ended, and when it is tried again. Pure."""

import re
from enum import StrEnum
from typing import Final

RETRY_FIRST_SECONDS: Final = 1.0
RETRY_MAX_SECONDS: Final = 300.0


class Failure(StrEnum):
    """Why something could not be sent."""

    CREDENTIALS = "credentials"
    """There are none, or they may not do this."""
    MISSING = "missing"
    """There is no such bucket, container or directory."""
    NETWORK = "network"
    """The store does not answer."""
    SERVER = "server"
    """The store answers that it cannot now (5xx, 429)."""
    REFUSED = "refused"
    """The store refuses it, for another reason."""
    SHIPPER = "shipper"
    """crashd-ship is away, lacks its libraries, or died."""
    LOCAL = "local"
    """Something on this host: memory, a file, a setting."""


class Lost(StrEnum):
    """Why something will never be sent."""

    OUTBOX_FULL = "outbox_full"
    """Too many crashes waited."""
    CORES_FULL = "cores_full"
    """Too many cores waited."""
    RETENTION = "retention"
    """A record was deleted, because of its age, before it was sent."""
    CORE_DELETED = "core_deleted"
    """A core was deleted before it was sent."""
    UNREADABLE = "unreadable"
    """A record could not be read."""


class What(StrEnum):
    """What is sent, or fetched."""

    RECORDS = "records"
    CORE = "core"
    LOG = "log"
    POLICY = "policy"


_STATUS = re.compile(r"status code: (\d{3})")
_TOKENS = ("169.254.169.254", "token request", "metadata.google.internal", "credential")
_AWAY = (
    "error sending request",
    "timed out",
    "timeout",
    "connection",
    "dns error",
    "request error",
)


def classify_failure(text: str) -> Failure:
    """Classify the client library's message."""
    lowered = text.lower()
    if any(word in lowered for word in (*_TOKENS, "account must be specified")):
        return Failure.CREDENTIALS
    status = _STATUS.search(text)
    if status is not None:
        code = int(status[1])
        if code in (401, 403):
            return Failure.CREDENTIALS
        if code == 404:
            return Failure.MISSING
        if code in (408, 429) or code >= 500:
            return Failure.SERVER
        return Failure.REFUSED
    if "canonicalize filesystem root" in lowered or "not found" in lowered:
        return Failure.MISSING
    if "permission denied" in lowered or "privileges" in lowered:
        return Failure.CREDENTIALS
    if any(word in lowered for word in _AWAY):
        return Failure.NETWORK
    if "localfilesystem" in lowered:
        return Failure.LOCAL
    return Failure.REFUSED


def retry_seconds(failures: int, chance: float) -> float:
    """Return how long to wait after so many failures in a row.

    `chance`, between 0 and 1, spreads the hosts of a fleet: the wait is between half of a doubling
    time and all of it.
    """
    most = min(RETRY_MAX_SECONDS, RETRY_FIRST_SECONDS * 2.0 ** min(failures, 20))
    return most / 2 + chance * most / 2
