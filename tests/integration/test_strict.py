"""`crashctl verify --strict` as a process: without a daemon, and beside one at work."""

import json
import os
import signal
from pathlib import Path

from crashd.store.daemonlock import is_daemon_live
from crashd.store.handlerfile import install_handler
from tests.integration.handler import start_handler
from tests.integration.test_daemon import CORE, SHORT, crash
from tests.running import Daemon, crashctl, wait_until

CLEAN = "crashctl: store and index are consistent\n"


def test_strict_prints_a_line_for_each_finding_and_fails(short_tmp: Path) -> None:
    with Daemon(short_tmp, "--no-register") as daemon:
        install_handler(daemon.paths)
        crash(daemon)
        (found,) = daemon.wait_for(1)
    paths = daemon.paths
    done = crashctl(short_tmp, "verify", "--strict")
    assert (done.stdout, done.stderr) == ("", CLEAN)
    (paths.state_dir / "a\nb").touch()
    (paths.crashes / found["id"] / "core.zst").unlink()
    assert crashctl(short_tmp, "verify", check=False).stdout.count("\n") == 1
    done = crashctl(short_tmp, "verify", "--strict", check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"no-core: {found['id']}: its core is missing",
        "unknown-file: a\\x0ab: is no file of crashd's",
    ]
    done = crashctl(short_tmp, "verify", "--strict", "--json", check=False)
    assert done.returncode == 1
    assert [(f["kind"], f["subject"]) for f in json.loads(done.stdout)] == [
        ("no-core", found["id"]),
        ("unknown-file", "a\nb"),
    ]


def test_strict_tells_of_no_capture_of_a_running_daemon(short_tmp: Path) -> None:
    with Daemon(short_tmp, "--no-register") as daemon:
        install_handler(daemon.paths)
        run = start_handler(daemon.paths, SHORT)
        os.write(run.write_fd, CORE[: len(CORE) // 2])
        wait_until(lambda: os.listdir(daemon.paths.crashes) != [], 30, "admitted")
        done = daemon.crashctl("verify", "--strict")
        assert (done.stdout, done.stderr) == ("", CLEAN)
        run.feed(CORE[len(CORE) // 2 :])
        assert run.wait() == 0
        daemon.wait_for(1)
        assert daemon.crashctl("verify", "--strict").stdout == ""


def test_strict_tells_of_what_a_killed_daemon_left_until_the_next_one_runs(short_tmp: Path) -> None:
    daemon = Daemon(short_tmp, "--no-register")
    install_handler(daemon.paths)
    daemon.start()
    daemon.stop(signal.SIGKILL)
    assert not is_daemon_live(daemon.paths)
    run = start_handler(daemon.paths, SHORT)
    run.feed(CORE)
    assert run.wait() == 0
    done = daemon.crashctl("verify", "--strict", check=False)
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert line.startswith("spooled: spool/")
    assert line.endswith(": waits for crashd to run and take it in")
    with daemon:
        daemon.wait_for(1)
        assert is_daemon_live(daemon.paths)
        assert daemon.crashctl("verify", "--strict").stdout == ""
    assert daemon.crashctl("verify", "--strict").stdout == ""
