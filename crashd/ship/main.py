"""`crashd-ship`: waits for the daemon, and sends to object storage what that hands over.

systemd holds its socket, or it makes one itself. The daemon connects; a packet of its settings
comes first, then orders (crashd.domain.fleet.orders). Records and policies have one thread, cores
another, so that a large core delays no record. When the daemon closes the connection, everything
under way is given up: the daemon knows what was stored, and repeats the rest.
"""

import argparse
import contextlib
import os
import queue
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from crashd import __version__
from crashd.base import messages
from crashd.domain.fleet.orders import (
    Answer,
    Get,
    Order,
    Put,
    ShipSettings,
    parse_order,
)
from crashd.domain.fleet.outcome import Failure, What
from crashd.edge.capture.process import make_undumpable
from crashd.edge.fleet import age
from crashd.edge.fleet.objects import Objects
from crashd.errors import CrashdError, FormatError, UnavailableError, reason_of
from crashd.ship.pace import Pace
from crashd.ship.uploads import Uploader, failed
from crashd.store.paths import Paths

_SD_FIRST = 3
_PATIENT_RETRIES = 10


class Session:
    """One connection of the daemon; owns its socket."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._sending = threading.Lock()
        self._abandoned = threading.Event()
        self._uploader: Uploader | None = None
        self._trouble: CrashdError | None = None
        self._lanes: dict[bool, queue.SimpleQueue[tuple[Put | Get, int] | None]] = {
            False: queue.SimpleQueue(),
            True: queue.SimpleQueue(),
        }

    def serve(self) -> None:
        """Carry out orders until the daemon closes the connection; then wait for what is under
        way, which gives up soon.
        """
        threads = [
            threading.Thread(target=self._work, args=(lane,), name="ship", daemon=True)
            for lane in self._lanes.values()
        ]
        for thread in threads:
            thread.start()
        try:
            while self._receive():
                pass
        finally:
            self._abandoned.set()
            for lane in self._lanes.values():
                lane.put(None)
            for thread in threads:
                thread.join()
            self._peer.close()

    def _receive(self) -> bool:
        packet = messages.receive_packet(self._peer, messages.PACKET_MAX, 1)
        if not packet.data:
            return False
        try:
            order = parse_order(messages.parse(packet.data))
            if not isinstance(order, ShipSettings) and len(packet.descriptors) != 1:
                raise FormatError("order to crashd-ship has no file")
        except FormatError as e:
            packet.close()
            print(f"crashd-ship: {e}, ignoring", file=sys.stderr)
            return True
        self._begin(order, packet)
        return True

    def _begin(self, order: Order, packet: messages.Packet) -> None:
        if isinstance(order, ShipSettings):
            packet.close()
            self._answer(self._configure(order))
        else:
            slow = isinstance(order, Put) and order.what is not What.RECORDS
            self._lanes[slow].put((order, packet.descriptors.pop()))

    def _configure(self, settings: ShipSettings) -> Answer:
        """Take the settings; orders that wait already are carried out by them, too."""
        self._uploader = self._trouble = None
        try:
            recipients = settings.recipients
            self._uploader = Uploader(
                Objects(settings.url),
                Objects(settings.url, retries=_PATIENT_RETRIES),
                Pace(settings.bandwidth),
                tuple(age.parse_recipients(recipients)) if recipients else (),
                self._abandoned.is_set,
            )
        except CrashdError as e:
            self._trouble = e
            print(f"crashd-ship: {e}", file=sys.stderr)
            return failed(0, e)
        return Answer(0, True)

    def _work(self, lane: "queue.SimpleQueue[tuple[Put | Get, int] | None]") -> None:
        while (given := lane.get()) is not None:
            order, fd = given
            try:
                answer = self._carry_out(order, fd)
            except Exception as e:  # boundary: one order must not end the shipper
                answer = Answer(order.job, True, failure=Failure.SHIPPER, text=reason_of(e))
            finally:
                os.close(fd)
            self._answer(answer)

    def _carry_out(self, order: Put | Get, fd: int) -> Answer:
        uploader = self._uploader
        if self._abandoned.is_set() or uploader is None:
            error = self._trouble or UnavailableError("there are no settings")
            return failed(order.job, error)
        if isinstance(order, Get):
            return uploader.get(order, fd)
        return uploader.put(order, fd, self._answer)

    def _answer(self, answer: Answer) -> None:
        with contextlib.suppress(OSError), self._sending:  # the daemon may be gone
            messages.send_message(self._peer, answer.to_json())


def listen(paths: Paths) -> tuple[socket.socket, bool]:
    """Return the listening socket, and whether systemd holds it; the caller owns it.

    Raises:
        UnavailableError: it cannot be made.

    """
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        os.set_inheritable(_SD_FIRST, False)
        return socket.socket(fileno=_SD_FIRST), True
    path = paths.ship_socket
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(1)
    except OSError as e:
        raise UnavailableError(f"cannot listen on {path}: {reason_of(e)}") from e
    return listener, False


def run(paths: Paths) -> int:
    """Serve one daemon after the other."""
    make_undumpable()  # the credentials are in memory
    listener, given = listen(paths)
    with listener:
        while True:
            peer, _ = listener.accept()
            if messages.read_peer(peer).uid not in (0, os.geteuid()):
                peer.close()
                continue
            Session(peer).serve()
            if given:  # systemd starts it again for the next connection, with fresh memory
                return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run `crashd-ship`; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="crashd-ship", description="Send what crashd hands over to object storage."
    )
    parser.add_argument("--version", action="version", version=f"crashd-ship {__version__}")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("CRASHD_ROOT", "/")),
        help="put the socket under this directory (default: $CRASHD_ROOT or /)",
    )
    arguments = parser.parse_args(argv)
    try:
        Objects("memory:///")
    except CrashdError as e:  # said at once; the daemon hears it, too, whenever it asks
        print(f"crashd-ship: {e}; {e.hint}", file=sys.stderr)
    try:
        return run(Paths(arguments.root.absolute()))
    except KeyboardInterrupt:
        return 130
    except CrashdError as e:
        print(f"crashd-ship: {e}", file=sys.stderr)
        if e.hint:
            print(f"  {e.hint}", file=sys.stderr)
        return e.exit_code
