"""The control socket: crashctl for users who may not read the store, `status` and `follow` for all.

Read-only, except that root can request the analysis of a crash, or retention at once. SO_PEERCRED
identifies the peer: root (and the daemon's own user) sees all crashes, other users see their own.
There are limits on connections (in total and for each user), seconds for a request and its answer,
bytes in both directions, and memory held for slow readers (`answers.py`). It is one idea despite
its length: everything here is one protocol, and the checks that guard it.
"""

import contextlib
import logging
import os
import queue
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

from crashd.base import messages
from crashd.daemon.after.retention import Spectator
from crashd.daemon.answers import Answer, Shares, SlowReaderError
from crashd.domain.crash.model import encode
from crashd.domain.crash.query import Query
from crashd.domain.crash.viewer import NOBODY, Viewer
from crashd.edge.capture.process import is_peer_in_our_user_ns
from crashd.edge.web.exporter import Exporter
from crashd.errors import (
    CrashdError,
    FormatError,
    PermissionDeniedError,
    UnavailableError,
    UsageError,
    reason_of,
)
from crashd.store.catalog import Catalog
from crashd.store.index import Index
from crashd.store.paths import Paths
from crashd.store.retention import Outcome

log = logging.getLogger("crashd.control")

CONNECTIONS_MAX = 64
CONNECTIONS_FOR_OTHERS = 48
"""Less than CONNECTIONS_MAX, so that root can always connect."""
CONNECTIONS_PER_UID = 8
REQUEST_SECONDS = 5.0
FOLLOW_QUEUE = 256
LIST_MAX = 100_000
LIST_BYTES = 8 << 20
"""Limit on the JSON of a list, because crashed processes chose its contents."""
FOLLOW_BYTES = 512 << 10
"""Limit on messages that wait for one reader of `follow`."""
TOP_MAX = 1000
PLAN_MAX = 50_000
"""Limit on the crashes listed in a vacuum's plan."""
PROGRESS_SECONDS = 0.2
_LOG_EVERY_SECONDS = 10.0


class StatusSource(Protocol):
    """Reports the daemon's status; see daemon/status.py."""

    def describe(self) -> dict[str, Any]:
        """Return the data that `crashctl status` prints; called by any thread."""
        ...


class Work(Protocol):
    """Does the work that root requests; see daemon/rootwork.py."""

    def analyze(self, crash_id: str) -> bool:
        """Queue a crash's analysis before all others; return False if that is impossible."""
        ...

    def vacuum(self, spectator: Spectator, *, dry_run: bool) -> Outcome:
        """Enforce the limits of retention now."""
        ...


class _Teller(Spectator):
    """Reports to a peer on work that continues even if the peer leaves."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._gone = False
        self._told_s = 0.0

    def tell(self, document: dict[str, Any]) -> None:
        """Send a message, unless the peer is gone."""
        if not self._gone:
            try:
                _send(self._peer, document)
            except OSError:
                self._gone = True

    def planned(self, rows: list[dict[str, Any]]) -> None:
        """Send the crashes that are about to be deleted."""
        self.tell({"plan": rows[:PLAN_MAX], "count": len(rows)})

    def progress(self, done: int, total: int) -> None:
        """Send the progress of the work, at most every PROGRESS_SECONDS."""
        now_s = time.monotonic()
        if now_s - self._told_s >= PROGRESS_SECONDS:
            self._told_s = now_s
            self.tell({"done": done, "total": total})


class _Follower:
    """One `follow`: a bounded queue between the indexer and a slow reader."""

    def __init__(self, viewer: Viewer | None) -> None:
        self.viewer = viewer
        self.queue: queue.Queue[bytes] = queue.Queue(FOLLOW_QUEUE)
        self.waiting_bytes = 0
        self.dropped = 0

    def put(self, message: bytes) -> None:
        """Queue a message, or count it as dropped; under the server's lock, like `took`."""
        if self.queue.full() or (
            self.waiting_bytes and self.waiting_bytes + len(message) > FOLLOW_BYTES
        ):
            self.dropped += 1
            return
        self.waiting_bytes += len(message)
        self.queue.put_nowait(message)

    def took(self, message: bytes) -> int:
        """Note that a message was taken from the queue; return how many were dropped before it."""
        self.waiting_bytes -= len(message)
        dropped, self.dropped = self.dropped, 0
        return dropped


class ControlServer:
    """Answers on a listening socket, which it owns; one thread accepts, and each connection has
    another thread.
    """

    def __init__(
        self,
        sock: socket.socket,
        paths: Paths,
        status: StatusSource,
        work: Work,
        exporter: Exporter,
    ) -> None:
        self._socket = sock
        self._paths = paths
        self._status = status
        self._work = work
        self._exporter = exporter
        self._logged = -_LOG_EVERY_SECONDS
        self._unlogged = 0
        self._refused = 0
        self._lock = threading.Lock()
        self._building = {True: threading.Lock(), False: threading.Lock()}
        """Answers are built one after another, separately for root and for users: at most two are
        built at a time, which limits the memory for them."""
        self._shares = Shares()
        self._open: Counter[int] = Counter()
        self._followers: set[_Follower] = set()
        self._stopping = threading.Event()
        self._wake_in, self._wake_out = socket.socketpair()
        self._thread = threading.Thread(target=self._accept_all, name="control", daemon=True)

    @property
    def refused(self) -> int:
        """Return how many connections were refused, or closed because of a bad request."""
        return self._refused

    def start(self) -> None:
        """Start to answer."""
        self._socket.setblocking(False)
        self._thread.start()

    def stop(self) -> None:
        """Stop answering, and close the socket; open connections end on their own."""
        self._stopping.set()
        self._wake_out.send(b"\0")
        self._thread.join()
        for end in (self._socket, self._wake_in, self._wake_out):
            end.close()

    @property
    def has_followers(self) -> bool:
        """Return whether anybody reads what is published."""
        return bool(self._followers)

    def publish(self, what: str, document: dict[str, Any], owner_uid: int | None) -> None:
        """Queue a crash for the readers of `follow` who may see it: a finished one (`crash`), or
        one whose analysis is done (`explained`). Callable from any thread; does not block.
        """
        gid = document.get("gid")
        with self._lock:
            if not self._followers:
                return
            message = messages.pack({what: document})  # one for all
            for follower in self._followers:
                viewer = follower.viewer
                if viewer is None or viewer.owns(owner_uid, gid):
                    follower.put(message)

    def _accept_all(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._wake_in, selectors.EVENT_READ)
            while not self._stopping.is_set():
                selector.select()
                self._accept()

    def _accept(self) -> None:
        try:
            peer, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as e:
            self._complain(f"cannot accept on the control socket: {reason_of(e)}")
            self._stopping.wait(1)  # out of descriptors: the listener stays readable
            return
        peer.setblocking(True)
        _, uid, gid = messages.read_peer(peer)
        if not self._admit(uid):
            peer.close()
            self._complain(f"uid {uid} on the control socket: too many connections")
            return
        arguments = (peer, Viewer(uid, gid))
        serve = threading.Thread(target=self._serve, args=arguments, name="control", daemon=True)
        try:
            serve.start()
        except RuntimeError as e:  # out of threads, or of memory for one
            peer.close()
            self._leave(uid)
            self._complain(f"cannot answer on the control socket: {e}")

    def _admit(self, uid: int) -> bool:
        trusted = uid in (0, os.geteuid())
        with self._lock:
            if self._open.total() >= (CONNECTIONS_MAX if trusted else CONNECTIONS_FOR_OTHERS):
                return False
            if not trusted and self._open[uid] >= CONNECTIONS_PER_UID:
                return False
            self._open[uid] += 1
        return True

    def _leave(self, uid: int) -> None:
        with self._lock:
            self._open[uid] -= 1
            if not self._open[uid]:
                del self._open[uid]

    def _serve(self, peer: socket.socket, user: Viewer) -> None:
        try:
            with peer:
                self._converse(peer, _viewer(peer, user))
        except FormatError as e:
            self._complain(f"uid {user.uid} on the control socket: {e}")
        except SlowReaderError:
            self._complain(f"uid {user.uid} on the control socket: read an answer too slowly")
        except (EOFError, OSError):
            pass  # the peer left, or the core that it read was deleted
        except Exception:  # boundary: one request must not end the daemon
            log.exception("control socket: a request failed")
        finally:
            self._leave(user.uid)

    def _complain(self, text: str) -> None:
        """Count a refused connection, and log it unless another was logged just before."""
        now = time.monotonic()
        self._exporter.control_refused()
        with self._lock:
            self._refused += 1
            if now - self._logged < _LOG_EVERY_SECONDS:
                self._unlogged += 1
                return
            others, self._unlogged, self._logged = self._unlogged, 0, now
        more = f" (and {others} more since the last such line)" if others else ""
        log.warning("%s%s, ignoring", text, more)

    def _converse(self, peer: socket.socket, viewer: Viewer | None) -> None:
        """Read one request and answer it; a malformed one is refused, and raises FormatError."""
        try:
            deadline = time.monotonic() + REQUEST_SECONDS
            request = messages.parse(messages.receive(peer, messages.REQUEST_MAX, deadline))
        except FormatError as e:
            with contextlib.suppress(OSError):
                _send(peer, _refusal(UsageError(str(e))))
            raise
        if request.get("verb") == "follow":
            self._follow(peer, viewer)
            return
        if request.get("verb") == "vacuum":
            self._answer_vacuum(_Teller(peer), viewer, dry_run=request.get("dry_run") is True)
            return
        with contextlib.ExitStack() as held:
            try:
                answer = self._answer(request, viewer, held)
            except CrashdError as e:
                answer = _whole(_refusal(e))
            except OSError as e:  # from the store: building an answer does not touch the peer
                broken = UnavailableError(f"the daemon cannot read its store: {reason_of(e)}")
                answer = _whole(_refusal(broken))
            held.callback(answer.close)
            answer.send(peer)

    def _answer(
        self, request: dict[str, Any], viewer: Viewer | None, held: contextlib.ExitStack
    ) -> Answer:
        """Build an answer; its memory, or its core, counts for the reader until `held` exits."""
        verb = request.get("verb")
        if verb == "status":
            return _whole({"ok": True, "status": self._status.describe()})
        if verb not in ("list", "top", "info", "open-core", "analyze"):
            raise UsageError(f"the daemon knows no {str(verb)[:40]!r}")
        user = None if viewer is None else viewer.uid
        with self._building[viewer is None], self._catalog() as catalog:
            if verb in ("list", "top"):
                answer = _whole(_found(catalog, verb, request, viewer))
                held.enter_context(self._shares.held(user, len(answer.head)))
                return answer
            crash_id = request.get("id")
            if not isinstance(crash_id, str):
                raise UsageError(f"{verb} needs an id")
            if verb == "open-core":
                held.enter_context(self._shares.core(user))
                return _core(catalog.open_core(crash_id, viewer))
            answer = _record(*catalog.open_record(crash_id, viewer))
            if verb == "info":
                return answer
            answer.close()
            if viewer is not None:
                raise PermissionDeniedError("only root may have crashes analysed")
            if not self._work.analyze(crash_id):
                raise UnavailableError(
                    "too many analyses are waiting, or none are made (analysis.enabled)"
                )
            return _whole({"ok": True})

    def _answer_vacuum(self, teller: "_Teller", viewer: Viewer | None, *, dry_run: bool) -> None:
        """Run a vacuum, and send its plan, progress and result; it continues if the peer leaves."""
        try:
            if viewer is not None:
                raise PermissionDeniedError("only root may delete crashes")
            teller.tell({"ok": True})
            outcome = self._work.vacuum(teller, dry_run=dry_run)
        except CrashdError as e:
            teller.tell(_refusal(e))
        except OSError as e:
            teller.tell(_refusal(UnavailableError(f"the store is not available: {reason_of(e)}")))
        else:
            done = {"deleted": outcome.count, "freed_bytes": outcome.freed_bytes}
            teller.tell({"result": {**done, "kept": sorted(outcome.kept)[:PLAN_MAX]}})

    @contextlib.contextmanager
    def _catalog(self) -> Iterator[Catalog]:
        with Index.open(self._paths.index, readonly=True) as index:
            yield Catalog(self._paths, index)

    def _follow(self, peer: socket.socket, viewer: Viewer | None) -> None:
        follower = _Follower(viewer)
        with self._lock:
            self._followers.add(follower)
        try:
            _send(peer, {"ok": True})
            while not self._stopping.is_set():
                self._pass_on(peer, follower)
        finally:
            with self._lock:
                self._followers.discard(follower)

    def _pass_on(self, peer: socket.socket, follower: _Follower) -> None:
        try:
            message = follower.queue.get(timeout=1)
        except queue.Empty:
            peer.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                peer.recv(1)  # the peer closed, or sent something unexpected: end the connection
                raise ConnectionAbortedError from None
            return
        with self._lock:
            dropped = follower.took(message)
        if dropped:
            _send(peer, {"dropped": dropped})
        Answer(message).send(peer)


def _whole(document: dict[str, Any]) -> Answer:
    return Answer(messages.pack(document))


def _found(
    catalog: Catalog, verb: str, request: dict[str, Any], viewer: Viewer | None
) -> dict[str, Any]:
    query = Query.from_json(request.get("query", {}))
    if verb == "list":
        return {
            "ok": True,
            "crashes": catalog.select(_bounded(query), viewer, max_bytes=LIST_BYTES),
        }
    limit = min(query.limit or TOP_MAX, TOP_MAX)
    return {"ok": True, "signatures": catalog.top(query._replace(limit=limit), viewer)}


def _record(fd: int | None, more: dict[str, Any]) -> Answer:
    """Build the answer with a record as it is stored, plus the fields `more`; owns the file."""
    if fd is None:
        return _whole({"ok": True, "crash": more})
    size = _last_brace(fd)
    head, tail = b'{"ok":true,"crash":', b"," + encode(more)[1:] + b"}"
    return Answer(messages.pack_size(len(head) + size + len(tail)) + head, fd, size, tail)


def _last_brace(fd: int) -> int:
    """Return the offset of the last brace of a JSON object in a file; only white space follows."""
    start = max(0, os.fstat(fd).st_size - 4096)
    return start + os.pread(fd, 4096, start).rindex(b"}")


def _core(fd: int) -> Answer:
    """Build the answer with a message that has a core's size, then the core; owns the file."""
    size = os.fstat(fd).st_size
    return Answer(messages.pack({"ok": True, "size_bytes": size}), fd, size, is_core=True)


def _viewer(peer: socket.socket, user: Viewer) -> Viewer | None:
    """Return the viewer that a peer is answered as; None sees all.

    A process in a user namespace below the host's sees nothing, because ptrace(2) does not give it
    access to its own user's processes outside either: the namespace may be there to isolate it.
    """
    if user.uid in (0, os.geteuid()):
        return None
    return user if is_peer_in_our_user_ns(peer) else NOBODY


def _bounded(query: Query) -> Query:
    if query.limit is not None and 0 <= query.limit <= LIST_MAX:
        return query
    return Query.from_json({**query.to_json(), "limit": LIST_MAX})


def _refusal(error: CrashdError) -> dict[str, Any]:
    return {"ok": False, "exit_code": error.exit_code, "error": str(error), "hint": error.hint}


def _send(peer: socket.socket, document: dict[str, Any]) -> None:
    _whole(document).send(peer)
