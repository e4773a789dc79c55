"""The page of `crashctl report`, looked at by a real browser."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from crashd.cli.htmlpage import policy
from tests.running import Daemon
from tests.system.conftest import raise_core_limit
from tests.unit.cli.test_htmlpage import Elements

EVIL = (
    "<script>document.title='owned'<\\script><img src=x onerror=document.title='owned'>\x1b]0;x\x07"
)


def browse(page: Path, directory: Path, *arguments: str) -> str:
    """Open a page in a headless Chromium; give the document as it is after everything has run."""
    done = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-dev-shm-usage", f"--user-data-dir={directory}/profile", *arguments),
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(directory), "LC_ALL": "C.UTF-8"},
    )
    return done.stdout


def test_report_of_hostile_crashes_is_shown_and_runs_nothing(
    daemon: Daemon, tmp_path: Path, crash_sleep: Callable[[], int]
) -> None:
    program = tmp_path / EVIL
    shutil.copy("/bin/sleep", program)
    for _ in range(3):
        child = subprocess.Popen([program, "1000"], preexec_fn=raise_core_limit)
        child.send_signal(11)
        assert child.wait(60) == -11
    crash_sleep()
    rows = daemon.wait_for(4)
    assert any("<script>" in str(row["exe"]) for row in rows)
    page = tmp_path / "page.html"
    daemon.crashctl("report", "-o", str(page))

    dom = browse(page, tmp_path, "--dump-dom")
    found = Elements(dom)
    assert re.search(r"<title>Crashes on [^<]+</title>", dom)
    ids = {"summary", "timeline", "counts", "signatures", "stacks", "latest", "stack-1", "stack-2"}
    assert ids <= set(found.values("id"))
    assert {"svg", "rect", "details"} <= set(found.tags)
    assert not {"script", "img", "iframe", "link", "object"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on") or name == "src"]
    assert "<script>document.title='owned'" in found.words
    assert "\x1b" not in dom
    assert policy() in found.values("content")
    assert re.search(r"4\s*Crashes", found.words)


def test_report_is_drawn_with_its_style(daemon: Daemon, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    daemon.crashctl("report", "-o", str(page))
    picture, plain = tmp_path / "styled.png", tmp_path / "plain.png"
    browse(page, tmp_path, f"--screenshot={picture}", "--window-size=1000,800")
    text = page.read_text()
    page.write_text(text.replace("sha256-", "sha256-0"))  # the style no longer fits its hash
    browse(page, tmp_path, f"--screenshot={plain}", "--window-size=1000,800")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.read_bytes() != plain.read_bytes()
