"""The guard between a client and the metrics: the stream (plain or TLS), and the gate."""

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


class WantsRead(BlockingIOError):
    """A stream must receive before it can send."""


class WantsWrite(BlockingIOError):
    """A stream must send before it can receive."""


class Stream(Protocol):
    """A client's non-blocking connection."""

    socket: socket.socket
    """The socket to wait for, and to close."""

    @property
    def refusal(self) -> str | None:
        """The only answer that its requests get, if set."""

    def recv(self, size: int) -> bytes:
        """Receive; raises BlockingIOError if nothing has arrived."""

    def send(self, data: memoryview) -> int:
        """Send a part of the data; raises BlockingIOError if there is no room."""

    def shutdown(self) -> None:
        """End the sending side."""


class PlainStream:
    """A stream without encryption."""

    refusal = None

    def __init__(self, peer: socket.socket) -> None:
        self.socket = peer
        self.recv = peer.recv
        self.send = peer.send

    def shutdown(self) -> None:
        """End the sending side."""
        self.socket.shutdown(socket.SHUT_WR)


class Question:
    """Credentials to be checked; another thread calls `done` once."""

    def __init__(self, header: str, done: Callable[["Question"], None]) -> None:
        self.header = header
        self.done = done
        self.let_in = False
        self.cancelled = False
        """Set if the answer is no longer needed."""


class Gate(Protocol):
    """Decides by credentials which clients may enter."""

    def verdict(self, header: str) -> bool | None:
        """Judge an Authorization header at once; None if that takes time."""

    def ask(self, question: Question) -> bool:
        """Queue a question; return False if too many are waiting."""

    def stop(self) -> None:
        """End; waiting questions get no answer."""


@dataclass(frozen=True, slots=True)
class Guard:
    """How clients are treated; by default without encryption, and all may enter."""

    wrap: Callable[[socket.socket], Stream] = PlainStream
    """Makes a stream from a connection; raises OSError if that is already broken."""
    gate: Gate | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers added to each answer."""
    secure: bool = False
    """Whether the streams are TLS."""
