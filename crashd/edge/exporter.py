"""Metrics for Prometheus, and their server. Only importer of prometheus_client.

A scrape reads memory only. Labels come from closed sets; every combination is there from the first
scrape on, at 0, so that rate() sees the first crash.
"""

import contextlib
import errno
import gzip
import os
import re
import selectors
import socket
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import StrEnum
from http import HTTPStatus
from itertools import accumulate, product

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from crashd.domain.model import Disposition, Engine, Kind
from crashd.domain.signals import CORE_SIGNALS, signal_name
from crashd.errors import UnavailableError

HOLD_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Upper bounds, seconds."""
TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
CONNECTIONS_MAX = 32
REQUEST_MAX = 8192
"""Bytes of a request's head."""
DEADLINE_NS = 5 * 10**9
"""For a whole request, and again for its whole answer, however fast the bytes trickle."""
_OTHER = "other"
_STAGES = ("logical", "resident", "stored")


class DropReason(StrEnum):
    """Why something was dropped, or took the long way."""

    QUEUE_FULL = "queue_full"
    SPOOL_INVALID = "spool_invalid"
    STORE_ERROR = "store_error"
    WORKER_DIED = "worker_died"
    DEADLINE = "deadline"
    MALFORMED_HANDOFF = "malformed_handoff"


# -- the metrics -----------------------------------------------------------------------------------

_KINDS = tuple(kind.value for kind in Kind)
_DISPOSITIONS = tuple(kept.value for kept in Disposition)
_SIGNALS = (*(signal_name(number) for number in sorted(CORE_SIGNALS)), _OTHER)
_REASONS = tuple(reason.value for reason in DropReason)
_COUNTERS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "crashd_crashes": ("Crashes recorded.", {"kind": _KINDS, "disposition": _DISPOSITIONS}),
    "crashd_crashes_by_signal": ("Process crashes recorded.", {"signal": _SIGNALS}),
    "crashd_capture_bytes": ("Captured: as dumped, without zeros, on disk.", {"stage": _STAGES}),
    "crashd_dropped": ("Events that lost something or took the long way.", {"reason": _REASONS}),
}
_GAUGES: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "crashd_captures_in_flight": ("Captures under way or waiting.", {}),
    "crashd_store_bytes": ("Bytes of stored cores.", {"kind": _KINDS}),
    "crashd_store_entries": ("Crashes in the store.", {"kind": _KINDS}),
    "crashd_store_free_bytes": ("Free on the store's file system.", {}),
    "crashd_last_crash_timestamp_seconds": ("Of the newest; 0: none known.", {"kind": _KINDS}),
    "crashd_core_pattern_owned": ("1 if kernel.core_pattern names crashd's handler.", {}),
}
"""Text, and each label with all its values; the names of counters get `_total`."""


class Exporter(Collector):
    """All metrics, in memory; its methods may be called from any thread.

    They raise ValueError for what is outside of the closed sets, and then count nothing. Not made
    of prometheus_client's Counter and Histogram: those come with `_created` times of this process,
    from which Prometheus would take the seeded totals for crashes of just now.
    """

    def __init__(self, version: str) -> None:
        self._version = version
        self._lock = threading.Lock()
        self._values: dict[str, dict[tuple[str, ...], float]] = {
            name: dict.fromkeys(product(*labels.values()), 0)
            for name, (_, labels) in (*_COUNTERS.items(), *_GAUGES.items())
        }
        # For each engine a count for every bucket, and one for what is above the last.
        self._hold = {engine.value: [0] * (len(HOLD_BUCKETS) + 1) for engine in Engine}
        self._hold_sum = dict.fromkeys(self._hold, 0.0)
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def seed(
        self,
        by_disposition: Mapping[tuple[str, str], int],
        by_signal: Mapping[int | None, int],
        last_ns: Mapping[str, int],
    ) -> None:
        """Add what daemons before this one counted; once, before the first crash.

        `by_disposition` is keyed by (kind, disposition), `last_ns` by kind.
        """
        crashes = {_crash_labels(*key): count for key, count in by_disposition.items()}
        newest = {Kind(kind).value: time_ns for kind, time_ns in last_ns.items()}
        with self._lock:
            for labels, count in crashes.items():
                self._values["crashd_crashes"][labels] += count
            for number, count in by_signal.items():
                self._values["crashd_crashes_by_signal"][_signal_labels(number)] += count
            for kind, time_ns in newest.items():
                self._newest(kind, time_ns)

    def crash(self, kind: str, disposition: str, signal: int | None, time_ns: int) -> None:
        """Count one crash that is recorded."""
        labels = _crash_labels(kind, disposition)
        with self._lock:
            self._values["crashd_crashes"][labels] += 1
            if labels[0] == Kind.PROCESS:
                self._values["crashd_crashes_by_signal"][_signal_labels(signal)] += 1
            self._newest(labels[0], time_ns)

    def _newest(self, kind: str, time_ns: int) -> None:
        last = self._values["crashd_last_crash_timestamp_seconds"]
        last[(kind,)] = max(last[(kind,)], time_ns / 1e9)

    def captured(
        self, engine: str, hold_seconds: float | None, logical: int, resident: int, stored: int
    ) -> None:
        """Count one captured core: sizes in bytes, hold None when no process was held."""
        sizes = (logical, resident, stored)
        if min(sizes) < 0 or (hold_seconds is not None and not hold_seconds >= 0):
            raise ValueError(f"capture of {sizes} bytes in {hold_seconds} s")
        engine = Engine(engine).value
        with self._lock:
            for stage, size in zip(_STAGES, sizes, strict=True):
                self._values["crashd_capture_bytes"][(stage,)] += size
            if hold_seconds is not None:
                self._hold[engine][bisect_left(HOLD_BUCKETS, hold_seconds)] += 1
                self._hold_sum[engine] += hold_seconds

    def dropped(self, reason: DropReason) -> None:
        """Count something that went wrong."""
        with self._lock:
            self._values["crashd_dropped"][(DropReason(reason).value,)] += 1

    def in_flight(self, count: int) -> None:
        """Set how many captures are under way or waiting."""
        self._set("crashd_captures_in_flight", count)

    def store(self, kind: str, entries: int, size_bytes: int) -> None:
        """Set what the store holds of one kind."""
        with self._lock:
            self._values["crashd_store_entries"][(Kind(kind).value,)] = entries
            self._values["crashd_store_bytes"][(Kind(kind).value,)] = size_bytes

    def store_usage(self) -> dict[str, tuple[int, int]]:
        """Tell what the store holds: entries and bytes by kind."""
        with self._lock:
            entries, sizes = (self._values[f"crashd_store_{what}"] for what in ("entries", "bytes"))
            return {kind: (int(entries[(kind,)]), int(sizes[(kind,)])) for kind in _KINDS}

    def store_free(self, size_bytes: int) -> None:
        """Set how much is free on the store's file system."""
        self._set("crashd_store_free_bytes", size_bytes)

    def core_pattern_owned(self, owned: bool) -> None:
        """Set whether kernel.core_pattern is ours."""
        self._set("crashd_core_pattern_owned", int(owned))

    def _set(self, name: str, value: float) -> None:
        with self._lock:
            self._values[name][()] = value

    def render(self, accept: str) -> tuple[bytes, str]:
        """Build a scrape's body, and its content type, for an Accept header."""
        # Never the header itself: its words would come back in the content type.
        content_type = OPENMETRICS if wants_openmetrics(accept) else TEXT
        encode, _ = choose_encoder(content_type)
        return encode(self.registry), content_type

    def collect(self) -> Iterable[Metric]:
        """Build all metrics as of one moment; called by the registry."""
        build = GaugeMetricFamily("crashd_build_info", "1, with the version.", labels=("version",))
        build.add_metric((self._version,), 1)
        hold = HistogramMetricFamily(
            "crashd_capture_hold_seconds",
            "Time from the handler's start to the release of the crashed process.",
            labels=("engine",),
        )
        families: list[Metric] = [build, hold]
        bounds = [*map(str, map(float, HOLD_BUCKETS)), "+Inf"]
        with self._lock:
            for engine, counts in self._hold.items():
                buckets = zip(bounds, accumulate(map(float, counts)), strict=True)
                hold.add_metric((engine,), list(buckets), self._hold_sum[engine])
            for kind, described in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
                for name, (text, labels) in described.items():
                    family = kind(name, text, labels=tuple(labels))
                    for values, value in self._values[name].items():
                        family.add_metric(values, value)
                    families.append(family)
        return families


def _crash_labels(kind: str, disposition: str) -> tuple[str, str]:
    return Kind(kind).value, Disposition(disposition).value


def _signal_labels(number: int | None) -> tuple[str]:
    return (signal_name(number) if number is not None and number in CORE_SIGNALS else _OTHER,)


# -- what a request says ---------------------------------------------------------------------------


def parse_request(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Parse the head of an HTTP/1 request: method, path without query, headers by lower-case name.

    Raises:
        ValueError: it is none.

    """
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, version = first.split(" ")
    if not (method.isascii() and method.isalpha()) or version not in ("HTTP/1.0", "HTTP/1.1"):
        raise ValueError(f"{first!r:.80} is no HTTP/1 request")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise ValueError(f"{line!r:.80} is no header")
        known = headers.get(name.lower())
        headers[name.lower()] = value.strip() if known is None else f"{known}, {value.strip()}"
    return method, target.partition("?")[0], headers


def wants_openmetrics(accept: str) -> bool:
    """Tell whether an Accept header prefers OpenMetrics 1.0.0 to the text format."""
    best, text = 0.0, 0.0
    for kind, parameters, quality in _ranges(accept):
        if (kind, parameters.get("version", "1.0.0")) == ("application/openmetrics-text", "1.0.0"):
            best = max(best, quality)
        elif kind in ("text/plain", "text/*", "*/*"):
            text = max(text, quality)
    return best > 0 and best >= text


def accepts_gzip(accept_encoding: str) -> bool:
    """Tell whether an Accept-Encoding header allows gzip."""
    qualities = {coding: quality for coding, _, quality in _ranges(accept_encoding)}
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0


def _ranges(header: str) -> Iterable[tuple[str, dict[str, str], float]]:
    for item in header.lower().split(","):
        name, *rest = (part.strip() for part in item.split(";"))
        parameters = dict(part.partition("=")[::2] for part in rest)
        try:
            quality = float(parameters.pop("q", "1"))
        except ValueError:
            quality = 0.0
        yield name, parameters, quality if 0 <= quality <= 1 else 0.0


# -- the server ------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Connection:
    """A client: its request is read, then its answer is written, then its end is waited for."""

    peer: socket.socket
    deadline_ns: int
    request: bytearray = field(default_factory=bytearray)
    answer: memoryview = field(default_factory=lambda: memoryview(b""))
    answered: bool = False


class MetricsServer:
    """Serves metrics and health on a listening socket, which it owns, in one thread of its own.

    One for all: a slow client costs some kilobytes until its deadline, not a thread. When
    CONNECTIONS_MAX are open, a newcomer takes the place of the oldest that has nothing to get: who
    holds connections without a request cannot keep Prometheus out.
    """

    def __init__(
        self,
        sock: socket.socket,
        exporter: Exporter,
        health: Callable[[], bool],
        ready: Callable[[], bool],
    ) -> None:
        """Take `sock`. `health` and `ready`, called by its thread, are quick and never raise."""
        self.socket = sock
        sock.setblocking(False)
        self._exporter = exporter
        self._checks = {"/-/healthy": health, "/-/ready": ready}
        self._connections: dict[int, _Connection] = {}
        self._selector = selectors.DefaultSelector()
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering, and close the socket; may be called twice, or without `start`."""
        if self._stop_fd < 0:
            return
        os.eventfd_write(self._stop_fd, 1)
        if self._thread.ident is not None:
            self._thread.join()
        for connection in list(self._connections.values()):
            self._close(connection)
        self._selector.close()
        os.close(self._stop_fd)
        self._stop_fd = -1
        self.socket.close()

    def _run(self) -> None:
        self._selector.register(self._stop_fd, selectors.EVENT_READ)
        self._selector.register(self.socket, selectors.EVENT_READ)
        while True:
            due_ns = min((c.deadline_ns for c in self._connections.values()), default=None)
            wait = None if due_ns is None else max(0.0, (due_ns - time.monotonic_ns()) / 1e9)
            for key, _ in self._selector.select(wait):
                if key.fd == self._stop_fd:
                    return
                connection = self._connections.get(key.fd)
                if key.data is None:
                    self._accept()
                elif connection is not None and connection is key.data:
                    self._serve(connection)  # else closed for a newcomer just now
            now_ns = time.monotonic_ns()
            for late in [c for c in self._connections.values() if c.deadline_ns <= now_ns]:
                self._close(late)

    def _accept(self) -> None:
        try:
            peer, _ = self.socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            # No descriptors left, perhaps: the socket stays readable, and this must not spin.
            time.sleep(0.1)
            return
        peer.setblocking(False)
        if len(self._connections) >= CONNECTIONS_MAX:
            by_age = list(self._connections.values())
            self._close(next((c for c in by_age if not c.answer), by_age[0]))
        connection = _Connection(peer, time.monotonic_ns() + DEADLINE_NS)
        self._connections[peer.fileno()] = connection
        self._selector.register(peer, selectors.EVENT_READ, connection)

    def _close(self, connection: _Connection) -> None:
        del self._connections[connection.peer.fileno()]
        self._selector.unregister(connection.peer)
        connection.peer.close()

    def _serve(self, connection: _Connection) -> None:
        try:
            if not connection.answer and not self._read(connection):
                return
            with contextlib.suppress(BlockingIOError):
                connection.answer = connection.answer[connection.peer.send(connection.answer) :]
            events = selectors.EVENT_WRITE
            if not connection.answer:
                # Closed while something unread waits, TCP would reset, and the answer be lost.
                connection.peer.shutdown(socket.SHUT_WR)
                events = selectors.EVENT_READ
            self._selector.modify(connection.peer, events, connection)
        except BlockingIOError:
            return  # nothing to be read
        except OSError:
            self._close(connection)

    def _read(self, connection: _Connection) -> bool:
        """Take what has come; True when there is an answer to be sent."""
        data = connection.peer.recv(REQUEST_MAX)
        if not data:
            self._close(connection)
            return False
        if connection.answered:
            return False
        connection.request += data
        head, end, _ = connection.request[: REQUEST_MAX + 1].partition(b"\r\n\r\n")
        if end:
            answer = self._answer(bytes(head))
        elif len(connection.request) > REQUEST_MAX:
            answer = _build_answer(431, b"request is too large\n")
        else:
            return False
        connection.answered = True
        connection.answer = memoryview(answer)
        connection.deadline_ns = time.monotonic_ns() + DEADLINE_NS
        return True

    def _answer(self, head: bytes) -> bytes:
        try:
            method, path, headers = parse_request(head)
        except ValueError:
            return _build_answer(400, b"not understood\n")
        if method not in ("GET", "HEAD"):
            return _build_answer(405, b"only GET and HEAD\n", Allow="GET, HEAD")
        only_head = method == "HEAD"
        if path == "/metrics":
            body, content_type = self._exporter.render(headers.get("accept", ""))
            more = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
            if accepts_gzip(headers.get("accept-encoding", "")):
                body = gzip.compress(body, 5, mtime=0)
                more["Content-Encoding"] = "gzip"
            return _build_answer(200, body, only_head, **more)
        check = self._checks.get(path)
        if check is None:
            return _build_answer(404, b"try /metrics, /-/healthy or /-/ready\n", only_head)
        what = path.removeprefix("/-/").encode()
        if check():
            return _build_answer(200, what + b"\n", only_head)
        return _build_answer(503, b"not " + what + b"\n", only_head)


def _build_answer(status: int, body: bytes, only_head: bool = False, **more: str) -> bytes:
    headers = {
        "Content-Type": "text/plain; charset=utf-8",
        "X-Content-Type-Options": "nosniff",
        "Date": formatdate(usegmt=True),
        "Content-Length": str(len(body)),
        "Connection": "close",
        **more,
    }
    first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
    lines = [first, *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("ascii") + (b"" if only_head else body)


# -- listening -------------------------------------------------------------------------------------

_HINTS = {
    errno.EADDRINUSE: 'another program has the port: set [http] listen to another, or to "off"',
    errno.EACCES: "ports below 1024 are privileged: set [http] listen to a higher one",
    errno.EADDRNOTAVAIL: "no interface of this host has the address: see [http] listen",
}
_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F.:]*:[0-9a-fA-F.:]*)\]|([A-Za-z0-9_.-]+)):([0-9]{1,5})")
_NOT_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def listen(address: str) -> list[socket.socket]:
    """Listen on `HOST:PORT` or `[IPV6]:PORT`: one socket for each address of HOST, the caller's.

    One that this host lacks does not count beside another: `localhost` where IPv6 is off.

    Raises:
        UnavailableError: the address is none, or cannot be resolved or listened on.

    """
    servers: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, where in _resolve(address):
            try:
                # With SO_REUSEADDR, IPV6_V6ONLY and CLOEXEC.
                servers.append(socket.create_server(where, family=family, backlog=128))
            except OSError as e:
                if e.errno not in _NOT_HERE:
                    raise
                missing = e
        if missing is not None and not servers:
            raise missing
    except OSError as e:
        for server in servers:
            server.close()
        hint = _HINTS.get(e.errno or 0, "see [http] listen in crashd.toml")
        why = str(e.strerror).partition(" (while")[0]  # create_server() has the address once more
        raise UnavailableError(f"cannot listen on {address!r}: {why}", hint=hint) from e
    return servers


def _resolve(address: str) -> Iterable[tuple[int, tuple[str, int]]]:
    match = _ADDRESS.fullmatch(address)
    if not match or int(match[3]) > 65535 or not all(0 < len(x) < 64 for x in address.split(".")):
        raise OSError(errno.EINVAL, "it is neither HOST:PORT nor [IPV6]:PORT")
    found = socket.getaddrinfo(match[1] or match[2], int(match[3]), type=socket.SOCK_STREAM)
    return dict.fromkeys(
        (int(family), (str(where[0]), int(match[3]))) for family, *_, where in found
    )
