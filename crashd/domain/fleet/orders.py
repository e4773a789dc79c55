"""What the daemon and crashd-ship tell each other: one JSON packet each, some with a descriptor.
Pure.

    daemon    {do: "settings", url, bandwidth, recipients}
              {do: "put", job, what, key, encrypt, pack}    with the file to send
              {do: "get", job, what, key, etag, max_bytes}  with a file to write into
    shipper   {job: 0, over, failure, text}                  the answer to the settings
              {job, over: false, bytes}                     sent so far
              {job, over: true, bytes, etag, fetched, failure, text}

The shipper knows nothing else: what is sent, by which name and when, is the daemon's to decide.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final

from crashd.domain.fleet.outcome import Failure, What
from crashd.errors import FormatError

TEXT_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class ShipSettings:
    """Where to send, and how."""

    url: str
    bandwidth: int | None
    """Bytes a second; None is no limit."""
    recipients: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Put:
    """Store what is in the file beside it."""

    job: int
    what: What
    key: str
    encrypt: bool = False
    """To the recipients."""
    pack: bool = False
    """By zstd, first."""


@dataclass(frozen=True, slots=True)
class Get:
    """Fetch an object into the file beside it."""

    job: int
    what: What
    key: str
    etag: str | None
    max_bytes: int


Order = ShipSettings | Put | Get


def build_order(order: Order) -> dict[str, Any]:
    """Build the packet of an order."""
    do = {ShipSettings: "settings", Put: "put", Get: "get"}[type(order)]
    return {"do": do, **asdict(order)}


def parse_order(document: object) -> Order:
    """Parse an order.

    Raises:
        FormatError: it is none.

    """
    try:
        if not isinstance(document, dict):
            raise TypeError
        values = dict(document)
        match values.pop("do"):
            case "settings":
                return ShipSettings(**{**values, "recipients": tuple(values["recipients"])})
            case "put":
                return Put(**{**values, "what": What(values["what"])})
            case "get":
                return Get(**{**values, "what": What(values["what"])})
        raise ValueError
    except (TypeError, ValueError, KeyError) as e:
        raise FormatError("order to crashd-ship is malformed") from e


@dataclass(frozen=True, slots=True)
class Answer:
    """What the shipper says of an order; job 0 is the settings."""

    job: int
    over: bool
    """Nothing more comes of this job."""
    bytes: int = 0
    """Sent, or fetched."""
    etag: str = ""
    fetched: bool = False
    """There is a new object, and it is in the file."""
    failure: Failure | None = None
    text: str = ""

    def to_json(self) -> dict[str, Any]:
        """Build its packet."""
        return {**asdict(self), "failure": None if self.failure is None else self.failure.value}


def parse_answer(document: object) -> Answer:
    """Parse an answer, from a process that talks to the network: it may be anything.

    Raises:
        FormatError: it is none.

    """
    try:
        if not isinstance(document, dict):
            raise TypeError
        job, size, etag, text = (document[key] for key in ("job", "bytes", "etag", "text"))
        whole = all(type(n) is int and 0 <= n < 2**63 for n in (job, size))
        if not whole or not isinstance(etag, str) or not isinstance(text, str) or len(etag) > 1000:
            raise ValueError
        failure = document["failure"]
        return Answer(
            job,
            document["over"] is True,
            size,
            etag,
            document["fetched"] is True,
            None if failure is None else Failure(failure),
            text[:TEXT_MAX],
        )
    except (TypeError, ValueError, KeyError) as e:
        raise FormatError("answer of crashd-ship is malformed") from e
