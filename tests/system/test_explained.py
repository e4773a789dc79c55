"""Crashes explained by the daemon as they come: what the operator sees of it."""

import json
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_daemon import metric
from tests.running import PLAIN_CONFIG, Daemon, wait_until
from tests.system.conftest import raise_core_limit
from tests.system.test_analysis import compile_program

DISABLED = PLAIN_CONFIG + "[analysis]\nenabled = false\n"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program("causes", tmp_path_factory.mktemp("programs"))


def die(program: Path, word: str = "null_read") -> None:
    subprocess.run([program, word], preexec_fn=raise_core_limit, check=False, capture_output=True)


def explained(daemon: Daemon, count: int, seconds: float = 60) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = daemon.crashes()
        return len(found) >= count and all(crash["signature"] for crash in found)

    wait_until(there, seconds, f"{count} explained crashes")
    return found


def info(daemon: Daemon, *match: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(daemon.crashctl("info", "--json", *match).stdout)
    return document


@pytest.fixture
def root(core_pattern_lock: None, short_tmp: Path) -> Path:
    return short_tmp


def test_crash_is_explained_within_seconds_and_shown_first(root: Path, program: Path) -> None:
    with Daemon(root, config=PLAIN_CONFIG) as daemon:
        die(program)
        (crash,) = explained(daemon, 1, 20)
        assert crash["title"] == "SIGSEGV in causes, null_read(): NULL pointer read"
        found = info(daemon, crash["id"])
        assert found["analysis"]["state"] == "done"
        assert found["analysis"]["cause"] == "null-pointer"
        assert found["frames"][0]["function"] == "null_read"
        assert found["threads"][0]["crashed"]
        if platform.machine() == "x86_64":  # the kernel's own words, with the error code
            (line,) = found["report"]
            assert f"causes[{found['pid']}]: segfault at 20 ip" in line
            assert " error 4 " in line
        lines = daemon.crashctl("info").stdout.splitlines()
        assert lines[0] == crash["title"]
        assert any("offset 32 of a NULL" in line for line in lines[:8])
        stack = lines.index("Stack of the crashed thread:")
        assert "null_read" in lines[stack + 1]
        assert stack < next(n for n, line in enumerate(lines) if "Executable:" in line)
        assert metric(daemon, 'crashd_analysis_total{result="done"}') == 1
        assert metric(daemon, "crashd_signatures") == 1
        assert daemon.crashctl("verify", "--deep").stdout == ""
        before = daemon.crashes()
        daemon.crashctl("reindex")
        assert daemon.crashes() == before


def test_fifty_identical_crashes_have_one_signature_and_another_bug_another(
    root: Path, program: Path
) -> None:
    """Faster than they are analysed: none loses its core before its signature is known."""
    with Daemon(root, config=PLAIN_CONFIG) as daemon:
        for _ in range(50):
            die(program)
        die(program, "wild_read")
        rows = explained(daemon, 51, 90)
        assert len({row["signature"] for row in rows}) == 2
        # most of an analysis is starting its worker, which crashes at one site share
        records = [daemon.paths.crashes / row["id"] / "crash.json" for row in rows]
        costs = [json.loads(path.read_text())["analysis"]["cpu_seconds"] for path in records]
        daemon.crashctl("analyze", rows[-1]["id"])
        alone = info(daemon, rows[-1]["id"])["analysis"]["cpu_seconds"]
        assert sum(costs) < 0.5 * len(rows) * alone, (costs, alone)
        top = json.loads(daemon.crashctl("top", "--json").stdout)
        assert [row["count"] for row in top] == [50, 1]
        assert top[0]["title"] == "SIGSEGV in causes, null_read(): NULL pointer read"
        assert top[0]["first"] < top[0]["last"]
        lines = daemon.crashctl("top").stdout.splitlines()
        headings = ["COUNT", "FIRST", "LAST", "ID", "SIGNATURE"]
        assert lines[0].split() == [*headings, "SIGNAL", "EXE", "TITLE"]
        assert lines[1].split()[0] == "50"
        assert len(json.loads(daemon.crashctl("top", "--json", "--new-since", "-1h").stdout)) == 2
        assert daemon.crashctl("top", "--new-since", "now", check=False).returncode == 1


def test_disabled_analysis_waits_for_crashctl_analyze(root: Path, program: Path) -> None:
    with Daemon(root, config=DISABLED) as daemon:
        die(program)
        (crash,) = daemon.wait_for(1)
        time.sleep(1)
        assert daemon.crashes()[0]["signature"] is None
        refused = daemon.crashctl("analyze", crash["id"], check=False)
        assert refused.returncode == 4
        assert "analysis.enabled" in refused.stderr
        daemon.paths.config_file.write_text(PLAIN_CONFIG)
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: "configuration reloaded" in daemon.log.read_text(), 20, "reloaded")
        shown = daemon.crashctl("analyze", crash["id"])
        assert shown.stdout.startswith("SIGSEGV in causes, null_read(): NULL pointer read\n")


def test_daemon_killed_amid_analyses_goes_on_with_what_is_left(root: Path, program: Path) -> None:
    with Daemon(root, config=PLAIN_CONFIG) as daemon:
        for _ in range(10):
            die(program)
        daemon.wait_for(10)
        daemon.stop(signal.SIGKILL)
        daemon.start()
        rows = explained(daemon, 10)
        assert len({row["signature"] for row in rows}) == 1


@pytest.mark.parametrize("half", ["record", "index"])
def test_result_that_was_written_half_is_made_whole(root: Path, program: Path, half: str) -> None:
    with Daemon(root, config=PLAIN_CONFIG) as daemon:
        die(program)
        (crash,) = explained(daemon, 1)
    entry = daemon.paths.crashes / crash["id"]
    record = json.loads((entry / "crash.json").read_text())
    record["signature"] = None
    if half == "record":  # killed before the result said that all is written
        result = entry / "analysis.json"
        result.write_text('{"state": "running", "attempts": 1}')
        (entry / "crash.json").write_text(json.dumps({**record, "analysis": None}))
        daemon.crashctl("reindex")
    else:  # killed before the index knew
        whole = (entry / "crash.json").read_text()
        (entry / "crash.json").write_text(json.dumps(record))
        daemon.crashctl("reindex")
        (entry / "crash.json").write_text(whole)
    assert daemon.crashes()[0]["signature"] is None
    with daemon:
        assert explained(daemon, 1)[0]["signature"] == crash["signature"]
        assert daemon.crashctl("verify").stdout == ""


def test_core_that_kills_the_daemon_twice_is_given_up(root: Path, program: Path) -> None:
    with Daemon(root, config=DISABLED) as daemon:
        die(program)
        (crash,) = daemon.wait_for(1)
        # as a daemon leaves it that dies in the second attempt
        result = daemon.paths.crashes / crash["id"] / "analysis.json"
        result.write_text('{"state": "running", "attempts": 2}')
    with Daemon(root, config=PLAIN_CONFIG) as daemon:
        wait_until(lambda: info(daemon)["analysis"] is not None, 30, "it is given up")
        assert info(daemon)["analysis"]["state"] == "failed"
        assert "did not survive it 2 times" in daemon.crashctl("info").stdout
        assert metric(daemon, 'crashd_analysis_total{result="failed"}') == 1


def test_analysis_that_fails_is_told_and_not_tried_again(root: Path, program: Path) -> None:
    with Daemon(root, config=DISABLED) as daemon:
        die(program)
        (crash,) = daemon.wait_for(1)
        core = daemon.paths.crashes / crash["id"] / "core.zst"
        core.write_bytes(os.urandom(core.stat().st_size))
    with Daemon(root, config=PLAIN_CONFIG) as daemon:
        wait_until(lambda: info(daemon)["analysis"]["state"] != "pending", 20, "it is told")
        assert info(daemon)["analysis"]["state"] == "failed"
        die(program)
        wait_until(lambda: daemon.seen()[-1]["signature"] is not None, 20, "the next is explained")
    with Daemon(root, config=PLAIN_CONFIG) as daemon:
        time.sleep(2)
        assert "analysis failed" not in daemon.log.read_text().rpartition(" is ready")[2]


def test_crash_names_the_package_of_its_executable(
    root: Path, tmp_path: Path, crash_sleep: Callable[[], int]
) -> None:
    """The package manager names that of a program of the host, and a program its own."""
    claimed = tmp_path / "acme"
    text = json.dumps({"type": "deb", "name": "acme", "version": "1.2-3"})
    option = ["-Xlinker", f"--package-metadata={text}"]
    source = "int main(void) { return *(volatile int *)8; }"
    command = ["gcc", "-xc", "-", *option, "-o", str(claimed)]
    subprocess.run(command, input=source, text=True, check=True)
    with Daemon(root, config=PLAIN_CONFIG) as daemon:
        die(claimed)
        crash_sleep()
        explained(daemon, 2)
        found = info(daemon, "COREDUMP_PACKAGE_NAME=acme")
        assert [found[f"package_{key}"] for key in ("name", "version", "source")] == [
            "acme",
            "1.2-3",
            "note",
        ]
        found = info(daemon, "sleep")
        query = ["dpkg-query", "-W", "-f", "${Version}", "coreutils"]
        version = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        assert [found[f"package_{key}"] for key in ("name", "version", "source")] == [
            "coreutils",
            version,
            "dpkg",
        ]
        page = daemon.crashctl("info", "sleep").stdout
        assert f"Package: coreutils {version} (by dpkg)" in page
