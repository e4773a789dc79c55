from html.parser import HTMLParser
from typing import Any

import pytest

from crashd.cli.show.htmlpage import FRAMES_MAX, LATEST, TOP, Page, label, policy, render, text
from crashd.cli.show.htmlstyle import STYLE
from crashd.domain.crash.tally import plan_timeline, tally
from tests.unit.cli.rows import HOSTILE, NGINX, TIME_NS, doc_of, row_of

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;" + HOSTILE.decode(
    "utf-8", "backslashreplace"
)
EVIL += "\u061c\u202e\u200b\ufeff\u2066"
DAY_NS = 86400 * 10**9


class Elements(HTMLParser):
    """All elements, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words += data

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def page_of(rows: list[dict[str, Any]], stacks: dict[int, dict[str, Any]] | None = None) -> str:
    timeline = plan_timeline(TIME_NS - DAY_NS, TIME_NS + 10**9, 96)
    page = Page("web1", TIME_NS, "1.0", tally(rows, timeline), stacks or {}, rows)
    return "\n".join(render(page))


def test_render_has_timeline_signatures_stacks_and_the_latest() -> None:
    frames = [{"function": "third", "module": "/x", "file": "x.c", "line": 7}, {"pc": "0x1"}]
    found = Elements(page_of([row_of()], {0: doc_of() | {"frames": frames}}))
    wanted = {"summary", "timeline", "counts", "signatures", "stacks", "latest", "stack-1"}
    assert wanted <= set(found.values("id"))
    for words in ("Crashes on web1", "NULL pointer dereference", "third", "x.c:7", "0x1"):
        assert words in found.words
    assert "rect" in found.tags
    assert found.values("href") == ["#stack-1"]


def test_render_numbers_python_frames_apart() -> None:
    frames = [{"kind": "python", "function": "load"}, {"kind": "native", "function": "raise"}]
    page = page_of([row_of()], {0: doc_of() | {"frames": frames}})
    assert page.count('<ol class="stack" start="0">') == 2


def test_render_no_unit_is_no_unit() -> None:
    page = page_of([row_of(), row_of(unit=None)])
    assert "<b>1</b><span>Units</span>" in page


def test_render_paths_may_break_between_names_only() -> None:
    assert "<code>/<wbr>usr/<wbr>sbin/<wbr>nginx</code>" in page_of([row_of()])


def test_render_bars_of_paths_cut_the_directory_first() -> None:
    found = '<span class="path"><span>/usr/sbin/</span><b>nginx</b></span>'
    assert found in page_of([row_of()])
    assert label("nginx.service") == "nginx.service"
    assert label("/") == "/"
    assert label("a/<b>") == '<span class="path"><span>a/</span><b>&lt;b&gt;</b></span>'


def test_render_of_a_fault_has_the_stack_and_the_kernels_line() -> None:
    frames = [{"function": "ngx_parse", "module": "/usr/sbin/nginx"}]
    doc = doc_of() | {"frames": frames, "report": ["nginx[1234]: segfault at 0 ip 0"]}
    page = page_of([row_of()], {0: doc})
    assert "<b>ngx_parse</b>" in page
    assert "<pre>nginx[1234]: segfault at 0 ip 0</pre>" in page


def test_render_without_crashes_says_so() -> None:
    found = Elements(page_of([]))
    assert "No crashes in this period." in found.words
    assert "signatures" not in found.values("id")


def test_render_hostile_texts_are_only_texts() -> None:
    hostile = {
        key: EVIL
        for key in ("comm", "exe", "title", "unit", "signal_name", "explanation", "signature")
    } | {"id": EVIL, "state": EVIL, "time": EVIL, "container_id": EVIL}
    frames = [{"function": EVIL, "module": EVIL, "file": EVIL, "line": EVIL, "pc": EVIL}]
    row = row_of() | hostile
    kernel = row | {"kind": "kernel", "kernel": {"release": EVIL, "panic_kind": EVIL}}
    doc = doc_of() | hostile | {"frames": frames, "warnings": [EVIL]}
    log = doc | {"report": [EVIL], "kind": "kernel"}
    page = page_of([row, kernel | {"signature": "x"}], {0: doc, 1: log})
    harmless = Elements(page_of([row_of(), row_of()]))
    found = Elements(page)
    assert set(found.tags) - set(harmless.tags) <= {"pre", "ol", "li", "i"}
    assert {name for name, _ in found.attributes} <= {name for name, _ in harmless.attributes} | {
        "start"
    }
    assert set(found.values("href")) == {"#stack-1", "#stack-2"}
    assert "<script>alert(1)</script>" in found.words
    assert "\x1b" not in page
    assert not any(line for line in page.split("\n") if not line.isprintable())


def test_render_is_bounded_whatever_is_in_it() -> None:
    rows = [row_of() | {"title": f"{n}" * 9000, "signature": str(n)} for n in range(LATEST * 3)]
    doc = doc_of() | {"frames": [{"function": "f" * 5000}] * 5000, "log": ["x" * 5000] * 5000}
    page = page_of(rows, dict.fromkeys(range(TOP), doc))
    assert len(page) < 2 << 20
    found = Elements(page)
    assert found.tags.count("details") == TOP
    assert found.tags.count("li") == TOP * FRAMES_MAX
    assert "and 200 before them" in found.words


def test_policy_allows_the_style_alone() -> None:
    page = page_of([row_of(NGINX)])
    (given,) = [v for v in Elements(page).values("content") if v.startswith("default-src")]
    assert given == policy()
    assert given.startswith("default-src 'none'; style-src 'sha256-")
    assert f"<style>{STYLE}</style>" in page
    assert " style=" not in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [("<a>", "&lt;a&gt;"), ("\x1b[1m", "\\x1b[1m"), ("\"'", "&quot;&#x27;"), (5, "5")],
)
def test_text_escapes_markup_and_controls(value: object, shown: str) -> None:
    assert text(value) == shown
