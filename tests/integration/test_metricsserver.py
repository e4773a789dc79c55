"""The metrics server on real sockets, with clients of every kind."""

import fcntl
import gzip
import os
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from crashd.edge.web import metricsserver
from crashd.edge.web.exporter import OPENMETRICS, TEXT, Exporter
from crashd.edge.web.metricsserver import CONNECTIONS_MAX, REQUEST_MAX, MetricsServer, listen
from crashd.errors import UnavailableError
from tests.running import wait_until

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


class Running:
    """A server, and what its checks say."""

    def __init__(self) -> None:
        self.healthy = self.ready = True
        self.exporter = Exporter("1")
        (sock,) = listen("127.0.0.1:0")
        self.address = sock.getsockname()
        self.server = MetricsServer(sock, self.exporter, lambda: self.healthy, lambda: self.ready)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request; give the answer's status, headers by lower-case name, and body."""
        with self.connect() as client:
            client.sendall(request)
            return parse(receive(client))

    def get(
        self, path: str, *headers: str, method: str = "GET"
    ) -> tuple[int, dict[str, str], bytes]:
        lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]
        return self.ask("\r\n".join(lines).encode("latin-1"))


def receive(client: socket.socket) -> bytes:
    """Receive until the server closes."""
    parts = []
    while part := client.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def parse(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    version, status, _ = first.split(" ", 2)
    assert version == "HTTP/1.1"
    pairs = [line.split(": ", 1) for line in lines]
    headers = {name.lower(): value for name, value in pairs}
    assert len(headers) == len(pairs)
    return int(status), headers, body


@pytest.fixture
def running() -> Iterator[Running]:
    one = Running()
    one.server.start()
    yield one
    one.server.stop()


@pytest.fixture
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metricsserver, "DEADLINE_NS", 3 * 10**8)


def test_metrics_answer_is_whole_and_bare(running: Running) -> None:
    running.exporter.crash("process", "full", 11, 1)
    status, headers, body = running.get("/metrics")
    assert status == 200
    assert b'crashd_crashes_total{disposition="full",kind="process"} 1.0\n' in body
    assert headers.pop("date").endswith(" GMT")
    assert headers == {
        "content-type": TEXT,
        "content-length": str(len(body)),
        "x-content-type-options": "nosniff",
        "vary": "Accept, Accept-Encoding",
        "connection": "close",
    }


def test_metrics_format_and_coding_are_negotiated(running: Running) -> None:
    accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    _, headers, body = running.get("/metrics?debug=1", accept, "Accept-Encoding: gzip, br")
    assert headers["content-type"] == OPENMETRICS
    assert headers["content-encoding"] == "gzip"
    assert int(headers["content-length"]) == len(body)
    assert gzip.decompress(body) == running.exporter.render(OPENMETRICS)[0]


def test_metrics_words_of_the_client_do_not_come_back(running: Running) -> None:
    accept = "Accept: application/openmetrics-text;version=9.9.9-\xff;escaping=evil"
    status, headers, _ = running.get("/metrics", accept)
    assert (status, headers["content-type"]) == (200, TEXT)


@pytest.mark.parametrize("path", ["/metrics", "/-/healthy", "/nowhere"])
def test_head_is_get_without_a_body(running: Running, path: str) -> None:
    status, headers, body = running.get(path)
    head_status, head_headers, head_body = running.get(path, method="HEAD")
    assert (head_status, head_body) == (status, b"")
    assert int(head_headers["content-length"]) == len(body) > 0
    assert head_headers.keys() == headers.keys()


def test_checks_answer_200_or_503(running: Running) -> None:
    assert running.get("/-/healthy")[::2] == (200, b"healthy\n")
    assert running.get("/-/ready")[::2] == (200, b"ready\n")
    running.ready = False
    assert running.get("/-/ready")[::2] == (503, b"not ready\n")
    assert running.get("/-/healthy")[0] == 200
    running.healthy = False
    assert running.get("/-/healthy")[::2] == (503, b"not healthy\n")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/..", "*", "/-/", "//metrics", "/%6detrics"])
def test_other_path_is_404(running: Running, path: str) -> None:
    status, headers, body = running.get(path)
    assert status == 404
    assert body == b"try /metrics, /-/healthy or /-/ready\n"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get", "CONNECT"])
def test_other_method_is_405(running: Running, method: str) -> None:
    status, headers, _ = running.get("/metrics", method=method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "request_",
    [b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\nx\r\n\r\n"],
)
def test_request_that_is_none_is_400(running: Running, request_: bytes) -> None:
    assert running.ask(request_)[0] == 400


def test_request_too_large_is_431_also_while_it_is_still_coming(running: Running) -> None:
    assert running.ask(b"GET / HTTP/1.1\r\nX: " + REQUEST_MAX * b"x")[0] == 431
    # far more than is read: the answer must not be lost in a reset
    assert running.ask(b"GET / HTTP/1.1\r\nX: " + 30 * REQUEST_MAX * b"x")[0] == 431


def test_request_at_the_limit_is_answered(running: Running) -> None:
    start = b"GET /-/ready HTTP/1.1\r\nX: "
    assert running.ask(start + (REQUEST_MAX - len(start) - 4) * b"x" + b"\r\n\r\n")[0] == 200


def test_request_byte_by_byte_is_answered(running: Running) -> None:
    with running.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GET:
            client.send(bytes([byte]))
        assert parse(receive(client))[0] == 200


def test_request_with_its_sending_side_closed_is_answered(running: Running) -> None:
    with running.connect() as client:
        client.sendall(GET)
        client.shutdown(socket.SHUT_WR)
        assert parse(receive(client))[0] == 200


def test_client_that_trickles_is_cut_at_the_deadline(
    running: Running, short_deadline: None
) -> None:
    with running.connect() as client:
        for _ in range(2000):
            try:
                client.send(b"x")
            except OSError:
                return
            if select.select([client], [], [], 0.01)[0]:
                return
    pytest.fail("still there after 20 s")


def test_client_that_says_nothing_is_cut_at_the_deadline(
    running: Running, short_deadline: None
) -> None:
    with running.connect() as client:
        assert client.recv(1) == b""


def test_client_that_does_not_read_is_cut_at_the_deadline(
    running: Running, short_deadline: None
) -> None:
    running.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.settimeout(10)
        client.connect(running.address)
        client.sendall(GET)
        assert running.get("/-/ready")[0] == 200  # nobody else waits for him
        wait_until(lambda: not running.server._connections, 30, "the connection is closed")
        head, _, rest = receive_what_is_there(client).partition(b"\r\n\r\n")
    assert len(rest) < int(parse(head + b"\r\n\r\n")[1]["content-length"])


def receive_what_is_there(client: socket.socket) -> bytes:
    parts = []
    try:
        while part := client.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def test_client_that_reads_slowly_gets_all(running: Running) -> None:
    running.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.settimeout(10)
        client.connect(running.address)
        client.sendall(GET)
        parts = []
        while part := client.recv(100):
            parts.append(part)
    _, headers, body = parse(b"".join(parts))
    assert len(body) == int(headers["content-length"])


def test_idle_connections_are_bounded_and_do_not_keep_others_out(running: Running) -> None:
    idle = [running.connect() for _ in range(3 * CONNECTIONS_MAX)]
    try:
        assert running.get("/metrics")[0] == 200
        assert len(running.server._connections) <= CONNECTIONS_MAX
        poll = select.poll()
        for client in idle:
            poll.register(client, select.POLLIN)
        assert len(poll.poll(0)) >= 2 * CONNECTIONS_MAX  # the oldest are closed
        idle[-1].sendall(GET)
        assert parse(receive(idle[-1]))[0] == 200
    finally:
        for client in idle:
            client.close()


def test_scrapes_in_parallel_are_all_answered(running: Running) -> None:
    statuses: list[int] = []

    def scrape() -> None:
        statuses.append(running.get("/metrics")[0])

    threads = [threading.Thread(target=scrape) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 200


def test_fault_20_two_hundred_that_never_read_keep_nobody_out(running: Running) -> None:
    running.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    deaf = []
    try:
        for _ in range(200):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.settimeout(10)
            client.connect(running.address)
            client.sendall(GET)
            deaf.append(client)
        start = time.monotonic()
        assert running.get("/metrics")[0] == 200
        assert running.get("/-/healthy")[0] == 200
        assert time.monotonic() - start < 3  # before any deadline
        assert len(running.server._connections) <= CONNECTIONS_MAX
    finally:
        for client in deaf:
            client.close()


def test_server_that_waits_for_slow_clients_uses_no_cpu(running: Running) -> None:
    """Headers that trickle, requests that end nowhere, answers that nobody takes."""
    running.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    clients = [running.connect() for _ in range(CONNECTIONS_MAX)]
    for number, client in enumerate(clients):
        client.sendall((b"", b"GET /metrics HTTP/1.1\r\nX: ", GET)[number % 3])
    wait_until(lambda: len(running.server._connections) == CONNECTIONS_MAX, 30, "all are there")
    begin, used = time.monotonic(), time.process_time()
    select.select([], [], [], 1)
    share = (time.process_time() - used) / (time.monotonic() - begin)
    for client in clients:
        client.close()
    assert share < 0.3


def test_clients_that_break_off_leave_no_trace(
    running: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    for sent in (b"", b"GET /met", GET, 3 * GET, b"\0" * 100):
        for _ in range(20):
            client = running.connect()
            client.sendall(sent)
            reset = struct.pack("ii", 1, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            client.close()
    assert running.get("/metrics")[0] == 200
    wait_until(lambda: not running.server._connections, 30, "all are closed")
    assert capfd.readouterr() == ("", "")


def test_no_descriptors_left_is_survived(running: Running) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client:
        client.settimeout(10)
        lowest_free = os.dup(client.fileno())
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, before[1]))
        try:
            client.connect(running.address)
            client.sendall(GET)
            assert not select.select([client], [], [], 0.3)[0]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert parse(receive(client))[0] == 200


def test_stop_closes_all_and_may_be_called_twice() -> None:
    running = Running()
    running.server.start()
    with running.connect() as client:
        wait_until(lambda: bool(running.server._connections), 30, "accepted")
        running.server.stop()
        assert receive_what_is_there(client) == b""
    with pytest.raises(ConnectionRefusedError):
        running.connect()
    assert running.server.socket.fileno() == -1
    running.server.stop()


def test_stop_without_start_closes_the_socket() -> None:
    before = len(os.listdir("/proc/self/fd"))
    running = Running()
    running.server.stop()
    assert len(os.listdir("/proc/self/fd")) == before


# -- listen


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_listen_address_is_taken_and_not_inherited() -> None:
    (server,) = listen("127.0.0.1:0")
    with server:
        assert server.getsockname()[0] == "127.0.0.1"
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert fcntl.fcntl(server, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_listen_ipv6_is_ipv6_only() -> None:
    (server,) = listen("[::1]:0")
    with server:
        assert server.getsockname()[0] == "::1"
        assert server.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_listen_localhost_is_every_address_of_it_that_is_here() -> None:
    servers = listen("localhost:0")
    hosts = {server.getsockname()[0] for server in servers}
    for server in servers:
        server.close()
    assert hosts and hosts <= {"127.0.0.1", "::1"}
    assert len(hosts) == len(servers)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    def resolve(host: str, port: int, type: int) -> list[object]:
        return [(socket.AF_INET, type, 6, "", (address, port)) for address in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_listen_name_with_an_address_that_is_not_here_takes_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `localhost` with ::1 in /etc/hosts, on a machine without IPv6."""
    resolve_to(monkeypatch, "192.0.2.1", "127.0.0.1", "127.0.0.1")
    (server,) = listen("localhost:0")
    with server:
        assert server.getsockname()[0] == "127.0.0.1"


def test_listen_name_with_one_address_in_use_closes_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (server,) = listen("127.0.0.1:0")
    with server:
        resolve_to(monkeypatch, "127.0.0.2", "127.0.0.1")
        port = server.getsockname()[1]
        with pytest.raises(UnavailableError, match="in use") as error:
            listen(f"localhost:{port}")
        # the exception, still here, must not be what keeps it open or closes it
        socket.create_server(("127.0.0.2", port)).close()
    assert error.value.hint is not None


def test_listen_port_in_use_says_what_to_do() -> None:
    (server,) = listen("127.0.0.1:0")
    with server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(UnavailableError) as error:
            listen(address)
        assert len(os.listdir("/proc/self/fd")) == before
    assert str(error.value) == f"cannot listen on '{address}': Address already in use"
    assert "[http] listen" in (error.value.hint or "")


def test_listen_foreign_address_says_what_to_do() -> None:
    with pytest.raises(UnavailableError, match=r"192\.0\.2\.1:9816': Cannot assign") as error:
        listen("192.0.2.1:9816")
    assert "does not have the address" in (error.value.hint or "")


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":9816",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:-1",
        "127.0.0.1:65536",
        "127.0.0.1:٣",
        "::1:9816",
        "[127.0.0.1]:9816",
        "[]:9816",
        "[::1:9816",
        "[::zz]:9816",
        "a..b:9816",
        "a\0b:9816",
        "\udcff:9816",
        f"{64 * 'a'}:9816",
    ],
)
def test_listen_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UnavailableError, match="neither HOST:PORT nor"):
        listen(address)


def test_listen_host_that_is_none_is_refused() -> None:
    with pytest.raises(UnavailableError, match=r"cannot listen on '999\.1\.1\.1:1': ") as error:
        listen("999.1.1.1:1")
    assert "[http] listen" in (error.value.hint or "")
