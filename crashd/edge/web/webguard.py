"""What stands between a client and the metrics: the stream that its bytes come by, and the gate."""

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


class WantsRead(BlockingIOError):
    """A stream has to receive before it can send."""


class WantsWrite(BlockingIOError):
    """A stream has to send before it can receive."""


class Stream(Protocol):
    """A client's connection, which does not block."""

    socket: socket.socket
    """To wait for, and to close."""

    @property
    def refusal(self) -> str | None:
        """Why its requests get no answer but this."""

    def recv(self, size: int) -> bytes:
        """Receive; raises BlockingIOError when nothing is there."""

    def send(self, data: memoryview) -> int:
        """Send some of it; raises BlockingIOError when there is no room."""

    def shutdown(self) -> None:
        """Say that nothing more will be sent."""


class PlainStream:
    """A stream in the clear."""

    refusal = None

    def __init__(self, peer: socket.socket) -> None:
        self.socket = peer
        self.recv = peer.recv
        self.send = peer.send

    def shutdown(self) -> None:
        """Say that nothing more will be sent."""
        self.socket.shutdown(socket.SHUT_WR)


class Question:
    """Credentials that are being checked; `done` is called once, by another thread."""

    def __init__(self, header: str, done: Callable[["Question"], None]) -> None:
        self.header = header
        self.done = done
        self.let_in = False
        self.cancelled = False
        """Nobody waits for the answer any more."""


class Gate(Protocol):
    """Who knows by their credentials whom to let in."""

    def verdict(self, header: str) -> bool | None:
        """Judge an Authorization header at once; None when it would take time."""

    def ask(self, question: Question) -> bool:
        """Have it judged; False when too many wait."""

    def stop(self) -> None:
        """End; questions that wait are not answered any more."""


@dataclass(frozen=True, slots=True)
class Guard:
    """How clients are met; as it is by default, in the clear, and all are let in."""

    wrap: Callable[[socket.socket], Stream] = PlainStream
    """Makes a stream of a connection; raises OSError when that is broken already."""
    gate: Gate | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Added to each answer."""
    secure: bool = False
    """Whether the streams are TLS."""
