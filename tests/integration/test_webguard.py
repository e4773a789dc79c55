"""Metrics behind TLS and passwords, on real sockets, with clients that should not get in."""

import base64
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bcrypt
import pytest

from crashd.daemon.web.webconfig import load_guard
from crashd.edge.web import basicauth, metricsserver
from crashd.edge.web.basicauth import BasicAuth
from crashd.edge.web.exporter import Exporter
from crashd.edge.web.metricsserver import CONNECTIONS_MAX, MetricsServer, listen
from crashd.edge.web.webguard import Question
from crashd.errors import ConfigError
from tests.builders.authority import Authority
from tests.integration.test_metricsserver import GET, parse, receive
from tests.running import DEFAULT_CONFIG, Daemon, wait_until

SLOW, FAST = 10, 4
"""Costs of bcrypt: a check of 50 ms, and of one."""


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def hash_of(password: str, cost: int = FAST) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


def asking(credentials: str) -> bytes:
    return GET[:-2] + f"Authorization: {credentials}\r\n\r\n".encode()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("tls"))
    made.sign("server")
    made.sign("prometheus", "DNS:prometheus.example")
    made.sign("stranger", "DNS:stranger.example")
    return made


class Guarded:
    """A server with a web configuration."""

    def __init__(self, directory: Path, text: str) -> None:
        self.file = directory / "web.yml"
        self.file.write_text(text)
        (sock,) = listen("127.0.0.1:0")
        self.address: tuple[str, int] = sock.getsockname()
        guard = load_guard(str(self.file))
        self.server = MetricsServer(sock, Exporter("1"), lambda: True, lambda: True, guard)
        self.server.start()

    @property
    def gate(self) -> BasicAuth:
        assert isinstance(self.server.guard.gate, BasicAuth)
        return self.server.guard.gate

    def reload(self) -> None:
        self.server.guard = load_guard(str(self.file))

    def stop(self) -> None:
        self.server.stop()
        if self.server.guard.gate is not None:
            self.server.guard.gate.stop()

    def connect(self, context: ssl.SSLContext | None = None) -> socket.socket:
        plain = socket.create_connection(self.address, timeout=10)
        if context is None:
            return plain
        try:
            return context.wrap_socket(plain, server_hostname="127.0.0.1")
        except BaseException:
            plain.close()
            raise

    def ask(
        self, request: bytes = GET, context: ssl.SSLContext | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        with self.connect(context) as client:
            client.sendall(request)
            return parse(receive(client))


@pytest.fixture
def guard(authority: Authority, tmp_path: Path) -> Iterator[Callable[[str], Guarded]]:
    """Start servers whose certificates are copies of the authority's, beside their file."""
    for name in ("server.pem", "server.key", "ca.pem"):
        shutil.copy(authority.directory / name, tmp_path / name)
    started: list[Guarded] = []

    def start(text: str) -> Guarded:
        started.append(Guarded(tmp_path, text))
        return started[-1]

    yield start
    for one in started:
        one.stop()


TLS = "tls_server_config: {cert_file: server.pem, key_file: server.key%s}\n"
VERIFY = ", client_ca_file: ca.pem, client_auth_type: RequireAndVerifyClientCert"


# -- TLS


def test_tls_metrics_come_whole_and_the_end_is_said(
    guard: Callable[[str], Guarded], authority: Authority
) -> None:
    running = guard(TLS % "")
    context = authority.client()
    with running.connect(context) as client:
        assert isinstance(client, ssl.SSLSocket)
        assert client.version() == "TLSv1.3"
        client.sendall(GET)
        answer = b""
        while part := client.recv(1 << 16):  # raises where the end comes without TLS's own word
            answer += part
    status, headers, body = parse(answer)
    assert (status, len(body)) == (200, int(headers["content-length"]))
    assert body.startswith(b"# HELP crashd")


def test_tls_request_in_pieces_larger_than_a_record_or_a_read(
    guard: Callable[[str], Guarded], authority: Authority
) -> None:
    running, context = guard(TLS % ""), authority.client()
    assert running.ask(b"GET / HTTP/1.1\r\nX: " + 12_000 * b"x", context)[0] == 431
    with running.connect(context) as client:
        for byte in GET:
            client.sendall(bytes([byte]))
        assert parse(receive(client))[0] == 200


def test_tls_reads_slowly_and_gets_all(
    guard: Callable[[str], Guarded], authority: Authority
) -> None:
    running = guard(TLS % "")
    running.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    with running.connect(authority.client()) as client:
        client.sendall(GET)
        parts = []
        while part := client.recv(100):
            parts.append(part)
    _, headers, body = parse(b"".join(parts))
    assert len(body) == int(headers["content-length"])


def test_tls_client_in_the_clear_is_told_and_gets_nothing(
    guard: Callable[[str], Guarded],
) -> None:
    status, _, body = guard(TLS % "").ask()
    assert (status, body) == (400, b"this is HTTPS: use https://\n")


@pytest.mark.parametrize("sent", [b"\x16", b"\x16\x03\x01\xff\xff" + bytes(3000), b"\x16" * 9000])
def test_tls_nonsense_costs_nobody_else(
    guard: Callable[[str], Guarded],
    authority: Authority,
    sent: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metricsserver, "DEADLINE_NS", 5 * 10**8)
    running = guard(TLS % "")
    with running.connect() as client:
        client.sendall(sent)
        assert running.ask(context=authority.client())[0] == 200
        try:
            while client.recv(1 << 16):  # an alert, perhaps; then the end
                pass
        except ConnectionResetError:
            pass
    wait_until(lambda: not running.server._connections, 30, "all are closed")


def test_tls_older_than_allowed_is_refused(
    guard: Callable[[str], Guarded], authority: Authority
) -> None:
    running = guard(TLS % ", min_version: TLS13")
    context = authority.client()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        running.ask(context=context)


def test_tls_cipher_suites_are_those_named(
    guard: Callable[[str], Guarded], authority: Authority
) -> None:
    name = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
    running = guard(TLS % f", max_version: TLS12, cipher_suites: [{name}]")
    with running.connect(authority.client()) as client:
        assert isinstance(client, ssl.SSLSocket)
        cipher = client.cipher()
        assert cipher is not None
        assert cipher[0] == "ECDHE-ECDSA-AES256-GCM-SHA384"


def test_tls_client_without_a_certificate_of_the_authority_is_refused(
    guard: Callable[[str], Guarded], authority: Authority
) -> None:
    running = guard(TLS % VERIFY)
    assert running.ask(context=authority.client("stranger"))[0] == 200
    with pytest.raises((ssl.SSLError, ConnectionError)):
        running.ask(context=authority.client())


def test_tls_client_certificate_needs_one_of_the_names(
    guard: Callable[[str], Guarded], authority: Authority
) -> None:
    running = guard(TLS % (VERIFY + ", client_allowed_sans: [prometheus.example]"))
    assert running.ask(context=authority.client("prometheus"))[0] == 200
    with pytest.raises((ssl.SSLError, ConnectionError, ValueError)):
        running.ask(context=authority.client("stranger"))


def test_tls_certificate_that_need_not_be_given(
    guard: Callable[[str], Guarded], authority: Authority
) -> None:
    running = guard(TLS % VERIFY.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven"))
    assert running.ask(context=authority.client())[0] == 200
    assert running.ask(context=authority.client("prometheus"))[0] == 200


def test_tls_reload_takes_a_new_certificate(
    guard: Callable[[str], Guarded], authority: Authority
) -> None:
    running = guard(TLS % "")
    authority.sign("renewed")
    for kind in ("pem", "key"):
        shutil.copy(authority.directory / f"renewed.{kind}", running.file.parent / f"server.{kind}")

    def common_name() -> str:
        with running.connect(authority.client()) as client:
            assert isinstance(client, ssl.SSLSocket)
            certificate = client.getpeercert()
            assert certificate is not None
            return str(certificate["subject"][0][0][1])

    assert common_name() == "server"
    running.reload()
    assert common_name() == "renewed"


def test_tls_200_at_once_of_which_some_never_read(
    guard: Callable[[str], Guarded], authority: Authority
) -> None:
    """More than are served at once: Prometheus, which tries again, is never kept out for long."""
    running, context = guard(TLS % ""), authority.client()
    running.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    dumb = [running.connect() for _ in range(100)]
    deaf = []
    for _ in range(20):
        client = running.connect(context)
        client.sendall(GET)
        deaf.append(client)
    statuses: list[int] = []

    def scrape() -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                statuses.append(running.ask(context=context)[0])
                return
            except (OSError, ValueError):
                time.sleep(0.1)

    threads = [threading.Thread(target=scrape) for _ in range(80)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in [*dumb, *deaf]:
        client.close()
    assert statuses == [200] * 80
    assert len(running.server._connections) <= CONNECTIONS_MAX


# -- passwords


def test_auth_right_password_is_let_in_and_others_are_not(
    guard: Callable[[str], Guarded],
) -> None:
    running = guard(f"basic_auth_users: {{prometheus: '{hash_of('pass word')}'}}\n")
    assert running.ask(asking(basic("prometheus", "pass word")))[0] == 200
    for header in (
        basic("prometheus", "pass wor"),
        basic("prometheus", "pass word\0"),
        basic("prometheus", ""),
        basic("Prometheus", "pass word"),
        basic("", "pass word"),
        "Basic x",
        "Bearer prometheus",
    ):
        status, headers, body = running.ask(asking(header))
        assert (status, body) == (401, b"who are you?\n"), header
        assert headers["www-authenticate"] == 'Basic realm="crashd", charset="UTF-8"'


@pytest.mark.parametrize("path", ["/metrics", "/-/healthy", "/-/ready", "/", "/nowhere"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_auth_nothing_is_told_without_it(
    guard: Callable[[str], Guarded], path: str, method: str
) -> None:
    running = guard(f"basic_auth_users: {{a: '{hash_of('b')}'}}\n")
    request = f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    status, headers, body = running.ask(request)
    assert status == 401
    assert body in (b"who are you?\n", b"")
    assert "allow" not in headers


def test_auth_password_longer_than_bcrypt_looks_at(guard: Callable[[str], Guarded]) -> None:
    password = 72 * "x"
    running = guard(f"basic_auth_users: {{a: '{hash_of(password)}'}}\n")
    assert running.ask(asking(basic("a", password + "y")))[0] == 200  # as bcrypt has always done
    assert running.ask(asking(basic("a", password[:-1])))[0] == 401


def test_auth_headers_of_the_file_are_in_each_answer(guard: Callable[[str], Guarded]) -> None:
    running = guard(
        f"basic_auth_users: {{a: '{hash_of('b')}'}}\n"
        "http_server_config: {headers: {X-Frame-Options: deny}}\n"
    )
    for credentials in (basic("a", "b"), "none"):
        assert running.ask(asking(credentials))[1]["x-frame-options"] == "deny"


def test_auth_200_scrapes_cost_one_check(guard: Callable[[str], Guarded]) -> None:
    running = guard(f"basic_auth_users: {{a: '{hash_of('b', SLOW)}'}}\n")
    right = asking(basic("a", "b"))
    statuses: list[int] = []

    def scrape() -> None:
        for _ in range(20):
            statuses.append(running.ask(right)[0])

    threads = [threading.Thread(target=scrape) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 200
    assert running.gate.checks == 1


def test_auth_wrong_password_that_is_tried_again_costs_one_check(
    guard: Callable[[str], Guarded],
) -> None:
    running = guard(f"basic_auth_users: {{a: '{hash_of('b')}'}}\n")
    assert {running.ask(asking(basic("a", "old")))[0] for _ in range(50)} == {401}
    assert running.gate.checks == 1


def test_auth_flood_of_wrong_passwords_leaves_cpu_and_the_known_alone(
    guard: Callable[[str], Guarded],
) -> None:
    running = guard(f"basic_auth_users: {{a: '{hash_of('b', SLOW)}'}}\n")
    right = asking(basic("a", "b"))
    assert running.ask(right)[0] == 200
    stop = threading.Event()

    def guess(number: int) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            try:
                running.ask(asking(basic("a", f"guess {number} {count}")))
            except (OSError, ValueError):
                continue

    threads = [threading.Thread(target=guess, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    begin, used, checked = time.monotonic(), time.process_time(), running.gate.checks
    waits = []
    while time.monotonic() < begin + 3:
        asked = time.monotonic()
        assert running.ask(right)[0] == 200
        waits.append(time.monotonic() - asked)
        time.sleep(0.05)
    stop.set()
    checks = running.gate.checks - checked
    share = (time.process_time() - used) / (time.monotonic() - begin)
    for thread in threads:
        thread.join()
    print(f"{checks} checks in 3 s, {share:.0%} of a CPU, longest wait {max(waits) * 1e3:.0f} ms")
    assert checks > 0
    assert max(waits) < 0.5
    assert share < 0.75


def test_auth_more_questions_than_may_wait_are_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basicauth, "WAITING_MAX", 2)
    gate = BasicAuth({"a": hash_of("b", SLOW).encode()})
    answered: list[Question] = []
    questions = [Question(basic("a", f"wrong {number}"), answered.append) for number in range(6)]
    assert False in [gate.ask(question) for question in questions]
    wait_until(lambda: len(answered) >= 2, 30, "those that wait are judged")
    gate.stop()
    assert not gate.ask(questions[0])


def test_auth_client_that_went_away_is_not_checked() -> None:
    gate = BasicAuth({"a": hash_of("b", SLOW).encode()})
    answered: list[Question] = []
    first, second = (Question(basic("a", word), answered.append) for word in ("wrong", "b"))
    gate.ask(first)
    wait_until(lambda: answered == [first], 30, "it is judged")
    gate.ask(second)  # waits: a wrong one came just before
    second.cancelled = True
    third = Question(basic("a", "b"), answered.append)
    gate.ask(third)
    wait_until(lambda: answered[-1] is third, 30, "the last is judged")
    gate.stop()
    assert third.let_in
    assert second not in answered


def test_auth_stranger_and_wrong_password_take_the_same_time(
    guard: Callable[[str], Guarded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(basicauth, "REST", 0)
    running = guard(f"basic_auth_users: {{a: '{hash_of('b', SLOW)}'}}\n")

    def seconds(user: str) -> float:
        times = []
        for number in range(5):
            start = time.monotonic()
            assert running.ask(asking(basic(user, f"{number}")))[0] == 401
            times.append(time.monotonic() - start)
        return sorted(times)[2]

    assert 0.5 < seconds("a") / seconds("nobody") < 2


def test_auth_while_a_password_is_checked_others_are_served(
    guard: Callable[[str], Guarded],
) -> None:
    running = guard(f"basic_auth_users: {{a: '{hash_of('b')}', z: '{hash_of('y', 13)}'}}\n")
    assert running.ask(asking(basic("a", "b")))[0] == 200
    with running.connect() as slow:
        slow.sendall(asking(basic("z", "y")))
        wait_until(
            lambda: any(c.question for c in running.server._connections.values()), 30, "it waits"
        )
        assert running.ask(asking(basic("a", "b")))[0] == 200
        assert not select.select([slow], [], [], 0)[0], "was judged before the other had asked"
        assert parse(receive(slow))[0] == 200


def test_auth_stop_while_questions_wait_leaves_nothing(guard: Callable[[str], Guarded]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    running = guard(f"basic_auth_users: {{z: '{hash_of('y', 12)}'}}\n")
    clients = [running.connect() for _ in range(5)]
    for client in clients:
        client.sendall(asking(basic("z", "wrong")))
    wait_until(
        lambda: sum(c.question is not None for c in running.server._connections.values()) > 1,
        5,
        "they wait",
    )
    running.stop()
    for client in clients:
        client.close()
    assert len(os.listdir("/proc/self/fd")) == before


# -- the file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a mapping"),
        ("basic_auth_users: {a: b", "line 1"),
        ("basic_auth_users: {a: '$2b$04$" + 53 * "~" + "'}", "no bcrypt hash"),
        ("tls_server_config: {cert_file: none.pem, key_file: server.key}", "none.pem: cannot be"),
        ("tls_server_config: {cert_file: ca.pem, key_file: server.key}", "mismatch"),
        ("tls_server_config: {cert_file: web.yml, key_file: server.key}", "web.yml"),
        ("tls_server_config: {cert_file: server.pem, key_file: open.key}", "can read the key"),
        (
            TLS.strip() % ", client_ca_file: web.yml, client_auth_type: VerifyClientCertIfGiven",
            "ca",
        ),
    ],
)
def test_file_that_is_wrong_is_one_clear_line(
    authority: Authority, tmp_path: Path, text: str, words: str
) -> None:
    for name in ("server.pem", "server.key", "ca.pem"):
        shutil.copy(authority.directory / name, tmp_path / name)
    shutil.copy(tmp_path / "server.key", tmp_path / "open.key")
    (tmp_path / "open.key").chmod(0o644)
    file = tmp_path / "web.yml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as error:
        load_guard(str(file))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has files that it must not trust")
@pytest.mark.parametrize("name", ["web.yml", "server.key", "server.pem"])
def test_file_that_others_can_change_is_refused(
    authority: Authority, tmp_path: Path, name: str
) -> None:
    for copied in ("server.pem", "server.key"):
        shutil.copy(authority.directory / copied, tmp_path / copied)
    (tmp_path / "web.yml").write_text(TLS % "")
    assert load_guard(str(tmp_path / "web.yml")).secure
    os.chown(tmp_path / name, 65534, 0)
    with pytest.raises(ConfigError, match="belongs to uid 65534"):
        load_guard(str(tmp_path / "web.yml"))


def test_key_with_a_password_is_refused_and_nobody_asked(
    authority: Authority, tmp_path: Path
) -> None:
    shutil.copy(authority.directory / "server.pem", tmp_path)
    authority.openssl(
        *("ec", "-in", "server.key", "-out", str(tmp_path / "server.key")),
        *("-aes128", "-passout", "pass:secret"),
    )
    (tmp_path / "web.yml").write_text(TLS % "")
    with pytest.raises(ConfigError, match=r"server\.key"):
        load_guard(str(tmp_path / "web.yml"))


# -- the daemon


@pytest.fixture
def config(authority: Authority, short_tmp: Path) -> tuple[Path, str]:
    """A web configuration, and a crashd.toml that names it."""
    directory = short_tmp / "web"
    directory.mkdir()
    for name in ("server.pem", "server.key"):
        shutil.copy(authority.directory / name, directory / name)
    file = directory / "web.yml"
    file.write_text(TLS % "" + f"basic_auth_users: {{a: '{hash_of('b')}'}}\n")
    return file, DEFAULT_CONFIG.replace("[http]\n", f'[http]\nweb_config = "{file}"\n')


def ask_daemon(daemon: Daemon, context: ssl.SSLContext, credentials: str) -> int:
    host, _, port = daemon.metrics_url().split("/")[2].partition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=host) as client,
    ):
        client.sendall(asking(credentials))
        return parse(receive(client))[0]


def test_daemon_serves_as_the_file_says_and_reads_it_again(
    short_tmp: Path, authority: Authority, config: tuple[Path, str]
) -> None:
    file, text = config
    context = authority.client()
    with Daemon(short_tmp, "--no-register", config=text) as daemon:
        assert daemon.metrics_url().startswith("https://")
        assert ask_daemon(daemon, context, basic("a", "b")) == 200
        assert ask_daemon(daemon, context, basic("a", "c")) == 401
        good = file.read_text()
        file.write_text("basic_auth_users: nobody")
        reload(daemon, "keeping the old one")
        assert ask_daemon(daemon, context, basic("a", "b")) == 200
        file.write_text(good.replace(good.split("'")[1], hash_of("c")))
        reload(daemon, "configuration reloaded")
        assert ask_daemon(daemon, context, basic("a", "b")) == 401
        assert ask_daemon(daemon, context, basic("a", "c")) == 200
        assert "$2b$" not in daemon.log.read_text()
        assert "Traceback" not in daemon.log.read_text()


def reload(daemon: Daemon, words: str) -> None:
    position = daemon.log.stat().st_size
    os.kill(daemon.pid, signal.SIGHUP)
    wait_until(lambda: words in daemon.log.read_text()[position:], 30, words)


def test_daemon_with_a_wrong_file_catches_crashes_and_serves_nobody_until_it_is_mended(
    short_tmp: Path, authority: Authority, config: tuple[Path, str]
) -> None:
    file, text = config
    good = file.read_text()
    file.write_text("tls_server_config: {cert_file: server.pem}")
    with Daemon(short_tmp, "--no-register", config=text) as daemon:
        assert "metrics at" not in daemon.log.read_text()
        (line,) = [x for x in daemon.log.read_text().splitlines() if " ERROR " in x]
        assert "tls_server_config.key_file is missing, the metrics are not served" in line
        assert '"metrics_address": []' in daemon.crashctl("status", "--json", check=False).stdout
        file.write_text(good)
        reload(daemon, "configuration reloaded")
        assert ask_daemon(daemon, authority.client(), basic("a", "b")) == 200


def test_daemon_keeps_a_socket_that_systemd_gave_while_the_file_is_wrong(
    short_tmp: Path, authority: Authority, config: tuple[Path, str]
) -> None:
    file, text = config
    good = file.read_text()
    file.write_text("basic_auth_users: {}")
    path = short_tmp / "etc/crashd/crashd.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    program = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3);"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='metrics');"
        "os.execv(sys.executable, [sys.executable, '-m', 'crashd', 'run', '--no-register',"
        " '--root', sys.argv[2]])"
    )
    log = short_tmp / "log"
    with (
        socket.create_server(("127.0.0.1", 0)) as given,
        log.open("wb") as errors,
        socket.create_connection(given.getsockname(), timeout=20) as plain,
        subprocess.Popen(
            [sys.executable, "-c", program, str(given.fileno()), str(short_tmp)],
            pass_fds=[given.fileno()],
            stderr=errors,
        ) as daemon,
    ):
        try:
            wait_until(lambda: " is ready" in log.read_text(), 20, "the daemon is ready")
            assert "metrics at" not in log.read_text()
            file.write_text(good)
            daemon.send_signal(signal.SIGHUP)
            # who came before is answered now
            with authority.client().wrap_socket(plain, server_hostname="127.0.0.1") as client:
                client.sendall(asking(basic("a", "b")))
                assert parse(receive(client))[0] == 200
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(30) == 0
        finally:
            daemon.kill()  # or leaving `with` waits for it


def test_check_config_reads_the_file_too(short_tmp: Path, config: tuple[Path, str]) -> None:
    file, text = config
    path = short_tmp / "etc/crashd/crashd.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)

    def check() -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "crashd", "check-config", "--root", str(short_tmp)],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    assert check() == (0, "")
    file.write_text("basic_auth_users: {a: b}")
    status, words = check()
    assert status == 2
    assert words.startswith(f"crashd: {file}: basic_auth_users.'a' has no bcrypt hash")
