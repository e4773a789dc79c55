import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd.edge.host.sdaemon import STATUS_MAX, Notifier, listen_fds


@pytest.fixture
def manager(short_tmp: Path) -> Iterator[socket.socket]:
    """The socket that systemd listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(short_tmp / "notify"))
        receiver.setblocking(False)
        yield receiver


def notifier_of(manager: socket.socket, **environ: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": manager.getsockname(), **environ})


def test_notifier_without_systemd_says_nothing() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "1000000"})
    said = (notifier.ready("x"), notifier.status("x"), notifier.reloading())
    assert (*said, notifier.stopping(), notifier.watchdog()) == (False,) * 5
    assert notifier.watchdog_interval_ns is None


@pytest.mark.parametrize(
    "address",
    ["/nonexistent/notify", "@crashd-nobody-listens", "relative", "/" + 200 * "x", "/a\0b"],
)
def test_notifier_socket_that_is_none_is_told_and_not_raised(address: str) -> None:
    assert Notifier({"NOTIFY_SOCKET": address}).ready("up") is False


def test_notifier_messages_are_those_of_sd_notify(manager: socket.socket) -> None:
    notifier = notifier_of(manager)
    assert notifier.ready("registered, 3 crashes")
    assert manager.recv(4096) == b"READY=1\nSTATUS=registered, 3 crashes"
    assert notifier.status("busy")
    assert manager.recv(4096) == b"STATUS=busy"
    assert notifier.stopping()
    assert manager.recv(4096) == b"STOPPING=1"
    assert notifier.watchdog()
    assert manager.recv(4096) == b"WATCHDOG=1"


def test_reloading_has_the_monotonic_time(manager: socket.socket) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert notifier_of(manager).reloading()
    first, second = manager.recv(4096).split(b"\n")
    assert first == b"RELOADING=1"
    name, _, usec = second.partition(b"=")
    assert name == b"MONOTONIC_USEC"
    assert before <= int(usec) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


@pytest.mark.parametrize("breaker", ["\n", "\r\n", "\u2028", "\x85"])
def test_status_line_break_adds_no_field(manager: socket.socket, breaker: str) -> None:
    assert notifier_of(manager).status(f"a{breaker}MAINPID=1")
    message = manager.recv(4096).decode()
    assert len(message.splitlines()) == 1
    assert message.startswith("STATUS=a\\")


def test_status_not_utf8_and_endless_is_made_fit(manager: socket.socket) -> None:
    assert notifier_of(manager).status("\udcff" + 10_000 * "é")
    message = manager.recv(8192).decode()
    assert message.startswith("STATUS=\\udcffé")
    assert len(message) == len("STATUS=") + STATUS_MAX


def test_notifier_abstract_socket_is_reached() -> None:
    name = f"crashd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name)
        assert Notifier({"NOTIFY_SOCKET": "@" + name}).stopping()
        assert receiver.recv(100) == b"STOPPING=1"


def test_notifier_nobody_reading_does_not_hang(manager: socket.socket) -> None:
    """As when PID 1 has crashed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                other.sendto(b"X=1", manager.getsockname())
    assert notifier_of(manager).watchdog() is False


@pytest.mark.parametrize(
    ("usec", "pid", "interval_ns"),
    [
        ("60000000", None, 30 * 10**9),
        ("60000000", "", 30 * 10**9),
        ("60000000", "ours", 30 * 10**9),
        ("60000000", "1", None),
        ("1", None, 500),
        ("0", None, None),
        ("", None, None),
        ("-5", None, None),
        ("٣", None, None),
        ("1e6", None, None),
        ("18446744073709551615", None, None),
        (5000 * "9", None, None),
    ],
)
def test_watchdog_interval_is_half_of_what_is_asked_of_us(
    manager: socket.socket, usec: str, pid: str | None, interval_ns: int | None
) -> None:
    environ = {"WATCHDOG_USEC": usec}
    if pid is not None:
        environ["WATCHDOG_PID"] = str(os.getpid()) if pid == "ours" else pid
    assert notifier_of(manager, **environ).watchdog_interval_ns == interval_ns


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "handoff"},
        {"LISTEN_FDS": "0", "LISTEN_PID": "ours"},
        {"LISTEN_FDS": "-1", "LISTEN_PID": "ours"},
        {"LISTEN_FDS": "65", "LISTEN_PID": "ours"},
        {"LISTEN_FDS": "x", "LISTEN_PID": "ours"},
    ],
)
def test_listen_fds_not_for_us_takes_nothing_and_unsets(environ: dict[str, str]) -> None:
    given = {**environ, "PATH": "/bin", "LISTEN_PIDFDID": "7"}
    if given.get("LISTEN_PID") == "ours":
        given["LISTEN_PID"] = str(os.getpid())
    assert listen_fds(given) == {}
    assert given == {"PATH": "/bin"}
