import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.cli.main import main
from crashd.domain.crash.model import Core, State
from crashd.edge.host.journal import build_fields
from crashd.store.entry import create, prepare
from crashd.store.index import Index
from crashd.store.paths import Paths

from .rows import NGINX

# What `crashctl list` may load, besides what every Python program has: the start has to be cheap,
# and each of these was weighed.
ALLOWED = {
    "crashd": {
        "cli",
        "cli.context",
        "cli.main",
        "cli.quick",
        "cli.verbs",
        "cli.show",
        "cli.show.listing",
        "cli.render",
        "cli.source",
        "domain",
        "domain.crash",
        "domain.crash.headline",
        "domain.crash.keys",
        "domain.crash.query",
        "domain.text",
        "domain.units",
        "errors",
        "records",
        "store",
        "store.indexfile",
        "store.indexread",
        "store.schema",
        "store.paths",
    },
}
FORBIDDEN = [
    "typing",
    "re",
    "enum",
    "contextlib",
    "collections.abc",
    "datetime",
    "importlib",
    "sqlite3",
    "argparse",
    "gettext",
    "locale",
    "pathlib",
    "urllib",
    "dataclasses",
    "inspect",
    "json",
    "pydantic",
    "prometheus_client",
    "systemd",
    "pyinotify",
    "zstandard",
    "socket",
    "subprocess",
    "logging",
    "tempfile",
    "shutil",
    "asyncio",
    "multiprocessing",
    "http",
    "email",
    "ssl",
    "unicodedata",
]
PROBE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
before = set(sys.modules)
from crashd.cli.main import main
status = main(sys.argv[1:])
modules = sorted(set(sys.modules) - before)
import json
print(json.dumps({{"status": status, "modules": modules}}))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with an empty store."""
    paths = Paths(tmp_path)
    prepare(paths)
    Index.open(paths.index).close()
    return tmp_path


@pytest.mark.allow_subprocess
def test_main_list_loads_only_what_it_needs(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-IS", "-c", PROBE, "--root", str(root), "-q", "list"],
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["status"] == 0
    loaded = set(answer["modules"])
    ours = {name.removeprefix("crashd.") for name in loaded if name.startswith("crashd.")}
    assert ours == ALLOWED["crashd"]
    assert not [name for name in FORBIDDEN if name in loaded]


@pytest.mark.allow_subprocess
def test_main_info_loads_neither_the_record_s_class_nor_the_store(root: Path) -> None:
    crash = replace(NGINX, core=Core(), state=State.METADATA_ONLY)
    with Index.open(Paths(root).index) as index:
        create(Paths(root), crash).close()
        index.put([crash])
    done = subprocess.run(
        [sys.executable, "-IS", "-c", PROBE, "--root", str(root), "-q", "info"],
        capture_output=True,
        text=True,
        check=True,
    )
    page, _, answer = done.stdout.rpartition("\n{")
    assert NGINX.id in page
    loaded = set(json.loads("{" + answer)["modules"])
    assert {"crashd.store.recordread", "crashd.cli.show.pages"} <= loaded
    unwanted = {
        "argparse",
        "dataclasses",
        "pathlib",
        "socket",
        "typing",
        "crashd.domain.crash.model",
        "crashd.store.entry",
    }
    assert not unwanted & loaded


@pytest.mark.allow_subprocess
@pytest.mark.parametrize("word", ["nginx", "4242", "COREDUMP_EXE=/usr/sbin/nginx", "uid=33"])
def test_main_list_of_a_word_loads_no_expressions(root: Path, word: str) -> None:
    command = [sys.executable, "-IS", "-c", PROBE, "--root", str(root), "-q", "list", word]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout)["modules"])
    assert "crashd.domain.crash.match" in loaded
    assert not {"re", "typing", "enum", "argparse", "json"} & loaded


@pytest.mark.allow_subprocess
def test_main_version_parses_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-IS", "-c", PROBE, "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    version, answer = done.stdout.splitlines()
    assert version.startswith("crashctl ")
    assert not {"argparse", "re", "typing", "pathlib"} & set(json.loads(answer)["modules"])


def test_main_empty_store_is_no_failure(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root), "list"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "crashctl: no crashes so far\n")
    assert main(["--root", str(root), "list", "--json"]) == 0
    assert capsys.readouterr() == ("[]\n", "")


@pytest.mark.parametrize(
    "words", [["nginx"], ["--since", "-1h"], ["--kind", "kernel"], ["--signature", "x"]]
)
def test_main_nothing_matched_is_status_1(
    root: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(root), "list", "--json", *words]) == 1
    assert capsys.readouterr() == ("[]\n", "crashctl: no crashes found\n")


def test_main_error_is_what_why_and_hint(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root), "info", "nosuch"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "crashctl: no crash matches nosuch\n  crashctl list shows all crashes\n"


def test_main_usage_error_is_status_2(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root), "list", "--since", "never"]) == 2
    assert main(["--root", str(root), "list", "nofield=1"]) == 2
    assert main(["nonsense"]) == 2
    assert "crashctl: unknown command 'nonsense'\n" in capsys.readouterr().err


def test_main_no_daemon_is_status_4(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("status", "follow"):
        assert main(["--root", str(root), verb]) == 4
        assert "no crashd answers" in capsys.readouterr().err


def test_main_no_store_is_status_4(tmp_path: Path) -> None:
    assert main(["--root", str(tmp_path), "list"]) == 4


def test_main_damaged_index_is_status_4_and_names_the_cure(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Paths(root).index.write_bytes(b"garbage" * 1000)
    assert main(["--root", str(root), "list"]) == 4
    assert "crashctl reindex" in capsys.readouterr().err
    assert main(["--root", str(root), "reindex"]) == 0
    assert main(["--root", str(root), "list"]) == 0


def test_main_message_cannot_reach_the_terminal(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(root), "info", "\x1b[2J\nx"]) == 1
    assert "\\x1b[2J\\x0ax" in capsys.readouterr().err


def test_main_debug_shows_the_traceback(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root), "--debug", "info", "nosuch"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_main_interrupted_is_status_130_and_silent(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("crashd.cli.show.listing.list_crashes", interrupt)
    assert main(["--root", str(root), "list"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("verb", "place", "collects"),
    [("list", "show.listing.list_crashes", False), ("follow", "show.listing.follow", True)],
)
def test_main_collects_garbage_only_where_there_may_be_some(
    root: Path, monkeypatch: pytest.MonkeyPatch, verb: str, place: str, collects: bool
) -> None:
    seen = []

    def look(*_: object) -> int:
        seen.append(gc.isenabled())
        return 0

    monkeypatch.setattr(f"crashd.cli.{place}", look)
    assert main(["--root", str(root), verb]) == 0
    assert seen == [collects]
    assert gc.isenabled(), "as it was"


@pytest.mark.parametrize(("number", "status"), [(1, 3), (13, 3), (5, 1)])
def test_main_system_error_names_the_file(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    status: int,
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr("crashd.cli.show.listing.list_crashes", fail)
    assert main(["--root", str(root), "list"]) == status
    message = capsys.readouterr().err
    assert message.startswith(f"crashctl: /some/file: {os.strerror(number)}\n")


SEEN = replace(
    NGINX,
    state=State.TRUNCATED,
    root=b"/srv/chroot",
    cgroup="/system.slice/nginx.service",
    session="3",
    rlimit_core=(1 << 64) - 1,
    environ=(b"A=1", b"B=\x1b[2J"),
    maps=b"maps",
    status=b"status",
    limits=b"limits",
    mountinfo=b"mountinfo",
    open_fds=b"0:/dev/null",
    thread_comm=b"worker",
    hostname=b"web1",
    user_unit="a.service",
    owner_uid=33,
)


def test_every_field_of_the_journal_is_shown(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Index.open(Paths(root).index) as index:
        create(Paths(root), SEEN).close()
        index.put([SEEN])
    for name, value in build_fields(SEEN, Path("/x/core.zst")).items():
        if not name.startswith("COREDUMP_"):
            continue
        assert main(["--root", str(root), "-F", name]) == 0
        shown = capsys.readouterr().out
        assert shown.endswith("\n") and shown.count("\n") == 1 and shown.strip(), name
        assert "\x1b" not in shown
        if name not in ("COREDUMP_ENVIRON", "COREDUMP_FILENAME"):
            assert shown == value.decode() + "\n", name


@pytest.mark.parametrize(
    ("term", "found"),
    [
        ("COREDUMP_ROOT=/srv/chroot", True),
        ("COREDUMP_ROOT=/srv/*", True),
        ("COREDUMP_ROOT=/", False),
        ("COREDUMP_CGROUP=/system.slice/nginx.service", True),
        ("COREDUMP_RLIMIT=18446744073709551615", True),
        ("COREDUMP_RLIMIT=0", False),
        ("COREDUMP_SESSION=3", True),
        ("COREDUMP_TRUNCATED=1", True),
    ],
)
def test_fields_of_the_journal_are_matched(
    root: Path, capsys: pytest.CaptureFixture[str], term: str, found: bool
) -> None:
    with Index.open(Paths(root).index) as index:
        index.put([SEEN])
    assert main(["--root", str(root), "-q", "-F", "pid", "list", term]) == (0 if found else 1)
    assert capsys.readouterr().out == (f"{SEEN.pid}\n" if found else "")


@pytest.mark.allow_subprocess
@pytest.mark.parametrize("last", ["", "import threading", "import atexit"])
def test_command_ends_with_all_output_written(last: str) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r}); {last}\n"
        "import crashd.cli.main as it\n"
        "def main():\n    print('out', end=''); print('err', end='', file=sys.stderr)\n"
        "    sys.stdout.flush()\n    return 3\n"
        "it.main = main\nsys.stderr.reconfigure(line_buffering=False, write_through=False)\n"
        "it.command()"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", program], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out", b"err")
