"""`crashctl analyze` fetches the debug information that a stack lacks, if that is allowed."""

import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import PLAIN_CONFIG, Daemon
from tests.system.conftest import run_crasher
from tests.system.test_explained import explained


class Debuginfod:
    """A server with the debug information of one program, as debuginfod answers."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                found = files.get(self.path)
                self.send_response(200 if found else 404)
                self.end_headers()
                self.wfile.write(found.read_bytes() if found else b"not found")

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def build_id_of(program: Path) -> str:
    notes = subprocess.run(
        ["readelf", "-n", program], capture_output=True, text=True, check=True
    ).stdout
    return notes.partition("Build ID: ")[2].split()[0]


@pytest.fixture
def stripped(tmp_path: Path, crasher: Path) -> tuple[Path, Path]:
    """The crasher without debug information, and that information."""
    program, debug = tmp_path / "crasher", tmp_path / "crasher.debug"
    shutil.copy(crasher, program)
    subprocess.run(["objcopy", "--only-keep-debug", crasher, debug], check=True)
    subprocess.run(["strip", "--strip-all", program], check=True)
    return program, debug


@pytest.fixture
def server(stripped: tuple[Path, Path]) -> Iterator[Debuginfod]:
    program, debug = stripped
    running = Debuginfod({f"/buildid/{build_id_of(program)}/debuginfo": debug})
    yield running
    running.close()


@pytest.mark.usefixtures("core_pattern_lock")
def test_debug_information_is_fetched_only_if_that_is_allowed(
    short_tmp: Path,
    stripped: tuple[Path, Path],
    server: Debuginfod,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program, _ = stripped
    monkeypatch.setenv("DEBUGINFOD_URLS", server.url)
    with Daemon(short_tmp / "r", config=PLAIN_CONFIG) as daemon:
        run_crasher(program)
        explained(daemon, 1)
        assert "third" not in daemon.crashctl("analyze", "comm=crasher").stdout
        assert server.asked == []
    config = PLAIN_CONFIG + "[analysis]\ndebuginfod = true\n"
    with Daemon(short_tmp / "r", config=config) as daemon:
        done = daemon.crashctl("analyze", "comm=crasher")
        assert "third" in done.stdout and "crasher.c:" in done.stdout, done
        assert f"/buildid/{build_id_of(program)}/debuginfo" in server.asked
        times = len(server.asked)
        daemon.crashctl("analyze", "comm=crasher")
        known = f"/buildid/{build_id_of(program)}/debuginfo"
        assert server.asked[times:].count(known) == 0, "it is in the cache"
