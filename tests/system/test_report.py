"""The page of `crashctl report`, looked at by a real browser."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from crashd.cli.show.htmlpage import policy
from crashd.domain.crash.model import Crash, Kind
from crashd.store.entry import create, prepare
from crashd.store.index import Index
from crashd.store.paths import Paths
from tests.builders.crashes import build_crash
from tests.running import PLAIN_CONFIG, Daemon, crashctl, wait_until
from tests.system.conftest import raise_core_limit
from tests.unit.cli.show.test_htmlpage import Elements

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


@pytest.mark.parametrize("daemon", [PLAIN_CONFIG], indirect=True)
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
    wait_until(lambda: all(row["signature"] for row in daemon.seen()), 60, "all are analysed")
    page = tmp_path / "page.html"
    daemon.crashctl("report", "-o", str(page))

    dom = browse(page, tmp_path, "--dump-dom")
    found = Elements(dom)
    assert re.search(r"<title>Crashes on [^<]+</title>", dom)
    ids = {"summary", "timeline", "counts", "signatures", "stacks", "latest", "stack-1", "stack-2"}
    assert ids <= set(found.values("id"))
    assert {"svg", "rect", "details", "li"} <= set(found.tags)
    assert not {"script", "img", "iframe", "link", "object"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on") or name == "src"]
    assert "<script>document.title='owned'" in found.words
    assert "\x1b" not in dom
    assert policy() in found.values("content")
    assert re.search(r"4\s*Crashes", found.words)


def build_store(root: Path, crashes: Iterable[Crash]) -> Paths:
    """Make a store of crashes without cores."""
    paths = Paths(root)
    prepare(paths)
    with Index.open(paths.index) as index:
        for crash in crashes:
            with create(paths, crash) as entry:
                entry.write(crash, sync=False)
            index.put([crash])
    return paths


def test_report_of_hostile_records_runs_nothing(short_tmp: Path, tmp_path: Path) -> None:
    now_ns = time.time_ns()
    evil = EVIL.replace("\\", "/")
    frame = {"function": evil, "module": evil, "file": evil, "line": 7, "pc": "0x1"}
    more: dict[str, Any] = {"title": evil, "explanation": evil, "comm": evil.encode()}
    kernel = {"release": evil, "panic_kind": evil}
    crashes = [
        build_crash(1, time_ns=now_ns - 10**9, frames=(frame,), warnings=(evil,), **more),
        build_crash(
            2, time_ns=now_ns, kind=Kind.KERNEL, kernel=kernel, report=(evil,), signature=evil
        ),
    ]
    paths = build_store(short_tmp, crashes)
    page = tmp_path / "page.html"
    crashctl(paths.root, "report", "-o", str(page))
    dom = browse(page, tmp_path, "--dump-dom")
    found = Elements(dom)
    assert "<title>Crashes on host</title>" in dom
    assert not {"script", "img", "iframe", "link", "object"} & set(found.tags)
    assert found.tags.count("details") == 2
    assert {"li", "pre"} <= set(found.tags)
    assert found.words.count("<script>document.title='owned'</script>") > 10


MEASURE = """<script>
const wide = [...document.querySelectorAll("section,.card,td,th,dd,li,summary")]
  .filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflow != "hidden");
const titles = [...document.querySelectorAll(".what")].map(e => e.clientWidth);
const names = [...document.querySelectorAll(".path b")];
const lines = e => {
  const all = document.createRange();
  all.selectNodeContents(e);
  return all.getClientRects().length;
};
const states = [...document.querySelectorAll(".state")].map(lines);
const rows = new Map();
for (const card of document.querySelectorAll(".card"))
  rows.set(card.offsetTop, (rows.get(card.offsetTop) || 0) + 1);
const labels = [...document.querySelectorAll(".card span")].map(lines);
const found = {cards: [...rows.values()], label: Math.max(...labels),
  names: names.length, state: Math.max(...states),
  names_cut: names.filter(e => e.scrollWidth > e.clientWidth).length,
  page: document.documentElement.scrollWidth, width: innerWidth,
  cut: wide.map(e => e.tagName + "." + e.className), title: Math.min(...titles)};
parent.postMessage(JSON.stringify(found), "*");
</script>"""
FRAME = '<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>'
COLLECT = """<title></title><script>const all = [];
onmessage = e => { all.push(JSON.parse(e.data)); document.title = JSON.stringify(all) }</script>"""
"""A window of the browser itself has at least 500 pixels."""


def test_report_fits_a_phone(short_tmp: Path, tmp_path: Path) -> None:
    now_ns = time.time_ns()
    name = "SIGSEGV in prog, ngx_http_process_request_line(): NULL pointer read at 0x0"
    exe = b"/usr/lib/postgresql/15/bin/postgres"
    crashes = [
        build_crash(n, time_ns=now_ns - n * 10**12, title=name, exe=exe, signature=f"s{n % 3}")
        for n in range(20)
    ]
    paths = build_store(short_tmp, crashes)
    page, frame = tmp_path / "page.html", tmp_path / "frame.html"
    crashctl(paths.root, "report", "-o", str(page))
    # the page forbids scripts: a copy of it may run the one that measures
    text = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text())
    page.write_text(text.replace("</body>", MEASURE + "</body>"))
    widths = (400, 800, 1180, 1280)
    frame.write_text(COLLECT + "".join(FRAME.format(width=width) for width in widths))
    dom = browse(frame, tmp_path, "--dump-dom", "--virtual-time-budget=3000")
    title = re.search(r"<title>(.+?)</title>", dom)
    assert title is not None
    measured = json.loads(title[1])
    assert {found["width"] for found in measured} == set(widths)
    for found in measured:
        assert found["page"] <= found["width"], found
        assert found["cut"] == [], found
        assert found["title"] >= 200, "a title is not broken at four characters"
        assert found["names"] > 0
        assert found["names_cut"] == 0, "of a path, the directory is cut"
        assert found["state"] == 1, "no state is broken"
        assert len(set(found["cards"])) == 1, "no row of cards has gaps"
        assert found["label"] == 1, "no label of a card is broken"
    in_a_row = {found["width"]: found["cards"][0] for found in measured}
    assert in_a_row == {400: 2, 800: 3, 1180: 6, 1280: 6}


def test_report_is_drawn_with_its_style(short_tmp: Path, tmp_path: Path) -> None:
    now_ns = time.time_ns()
    crashes = [build_crash(n, time_ns=now_ns - n * 10**12) for n in range(40)]
    paths = build_store(short_tmp, crashes)
    page = tmp_path / "page.html"
    crashctl(paths.root, "report", "-o", str(page))
    picture, plain = tmp_path / "styled.png", tmp_path / "plain.png"
    browse(page, tmp_path, f"--screenshot={picture}", "--window-size=1000,800")
    text = page.read_text()
    page.write_text(text.replace("sha256-", "sha256-0"))  # the style no longer fits its hash
    browse(page, tmp_path, f"--screenshot={plain}", "--window-size=1000,800")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.read_bytes() != plain.read_bytes()
