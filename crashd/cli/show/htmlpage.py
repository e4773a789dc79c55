"""The page of `crashctl report`: one HTML file that fetches nothing and runs nothing.

Pure: counts and records in, lines out. Every foreign string goes through `text`. Widths and heights
are SVG attributes, so that the page's Content-Security-Policy can forbid every style but its own.
"""

from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from typing import Any, Final

from crashd.cli.render import ABSENT, Row, local_time, local_time_of_ns, value_text
from crashd.cli.show.htmlstyle import STYLE
from crashd.domain.crash.tally import NO_UNIT, Group, Tally, Timeline, program
from crashd.domain.text import printable
from crashd.domain.units import format_duration, format_size

TOP: Final = 20
"""Signatures on the page, each with its newest stack."""
OPEN: Final = 3
"""Signatures with an unfolded stack."""
BARS: Final = 8
LATEST: Final = 100
FRAMES_MAX: Final = 48
LINES_MAX: Final = 120
"""Lines of a kernel's report."""
TEXT_MAX: Final = 400
"""Characters of one foreign string."""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 1000, 220, 48, 24
_BAR_WIDTH = 240
_SUBJECTS = (
    ("signals", "Signals"),
    ("units", "Units"),
    ("programs", "Programs"),
    ("dispositions", "Kept"),
)


@dataclass(frozen=True, slots=True)
class Page:
    """The contents of the page."""

    host: str
    made_ns: int
    version: str
    tally: Tally
    stacks: Mapping[int, Row]
    """The whole record of the newest crash of each top signature; the key is its rank, from 0."""
    latest: Sequence[Row]
    """Newest first."""


def text(value: object) -> str:
    """Escape a foreign string: for a terminal that shows the page's source, then for HTML."""
    shown = printable(str(value))
    return escape(shown if len(shown) <= TEXT_MAX else shown[:TEXT_MAX] + "…")


def path(value: object) -> str:
    """Escape a path, which may be broken after each directory."""
    return text(value).replace("/", "/<wbr>")


def label(name: str) -> str:
    """Escape a name of a bar; of a path that is too long, its directory is cut first."""
    directory, slash, last = name.rpartition("/")
    if not slash or not last:
        return text(name)
    return f'<span class="path"><span>{text(directory + slash)}</span><b>{text(last)}</b></span>'


def known(value: object) -> str:
    """Escape a value of a record; ABSENT if it has none."""
    return text(value) if value not in (None, "") else ABSENT


def policy() -> str:
    """Build the page's Content-Security-Policy: it allows the page's own style and nothing else."""
    digest = b64encode(sha256(STYLE.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def render(page: Page) -> Iterator[str]:
    """Yield the lines of the page."""
    title = f"Crashes on {text(page.host)}"
    yield "<!DOCTYPE html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{escape(policy())}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="referrer" content="no-referrer"><meta name="color-scheme" '
    yield f'content="light dark"><title>{title}</title><style>{STYLE}</style></head><body>'
    line = page.tally.timeline
    span = f"{local_time_of_ns(line.start_ns)} to {local_time_of_ns(line.end_ns)}"
    yield f"<header><h1>{title}</h1><p>{text(span)}</p></header><main>"
    yield from _cards(page)
    yield from _timeline(line)
    if page.tally.total:
        top = page.tally.top()
        yield from _subjects(page.tally)
        yield from _signatures(top)
        yield from _stacks(top, page.stacks)
        yield from _latest(page.latest, page.tally.total)
    else:
        yield '<section id="none"><p>No crashes in this period.</p></section>'
    made = f"Made by crashctl {page.version}, {local_time_of_ns(page.made_ns)}."
    yield f"</main><footer>{text(made)} Nothing on this page is fetched or run.</footer>"
    yield "</body></html>"


def _cards(page: Page) -> Iterator[str]:
    names = page.tally.names
    kernel = names["kinds"].get("kernel", 0)
    cards = (
        ("Crashes", page.tally.total, ""),
        ("Distinct crashes", len(page.tally.groups), ""),
        ("Kernel crashes", kernel, "bad" if kernel else ""),
        ("Units", len(names["units"].keys() - {NO_UNIT}), ""),
        ("Full cores", names["dispositions"].get("full", 0), ""),
        ("Lost", names["states"].get("lost", 0), "bad" if names["states"].get("lost") else ""),
    )
    yield '<section id="summary" class="cards">'
    for label, number, kind in cards:
        yield f'<div class="card {kind}"><b>{number}</b><span>{label}</span></div>'
    yield "</section>"


def _timeline(line: Timeline) -> Iterator[str]:
    """Draw the timeline as SVG: a grid, a stacked bar for each column, and times below."""
    totals = line.totals()
    most = max(totals, default=0) or 1
    height = _HEIGHT - _BOTTOM - 10
    each = (_WIDTH - _LEFT) / len(line)
    step = format_duration(line.step_ns)
    yield f'<section id="timeline"><h2>When</h2><p class="note">Each column covers {step}.'
    for kind, label in (("process", "processes"), ("kernel", "kernel")):
        yield f' <span class="legend"><span class="key {kind}"></span>{label}</span>'
    yield "</p>"
    yield f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Crashes over time">'
    for value in sorted({0, most // 2, most}):
        y = 10 + height - height * value / most
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="axis" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value}</text>'
    for column, total in enumerate(totals):
        if not total:
            continue
        when = local_time_of_ns(line.start_ns + column * line.step_ns)
        yield f"<g><title>{text(when)}: {total}</title>"
        top = 10.0 + height
        for kind, counts in line.counts.items():
            size = height * counts[column] / most
            top -= size
            if counts[column]:
                x = _LEFT + column * each
                width = max(each - 1.5, 1)
                yield f'<rect class="{kind}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" '
                yield f'height="{max(size, 1.5):.1f}"/>'
        yield "</g>"
    yield from _hours(line)
    yield "</svg></section>"


def _hours(line: Timeline) -> Iterator[str]:
    """Yield five times along the axis."""
    for part in range(5):
        when = local_time_of_ns(line.start_ns + (line.end_ns - line.start_ns) * part // 4)
        x = _LEFT + (_WIDTH - _LEFT) * part / 4
        anchor = ("start", "middle", "middle", "middle", "end")[part]
        minor = " minor" if part % 2 else ""  # a phone has no room for them
        yield f'<text class="axis at{minor}" x="{x:.0f}" y="{_HEIGHT - 6}" '
        yield f'text-anchor="{anchor}">{text(when[5:16])}</text>'


def _subjects(tally: Tally) -> Iterator[str]:
    yield '<section id="counts" class="columns">'
    for subject, heading in _SUBJECTS:
        counts = tally.ranked(subject)
        most = max((count for _, count in counts), default=1)
        yield f'<div><h2>{heading}</h2><table class="bars">'
        for name, count in counts[:BARS]:
            width = max(_BAR_WIDTH * count / most, 2)
            yield f'<tr><th title="{text(name)}">{label(name)}</th><td class="number">{count}</td>'
            yield f'<td class="bar"><svg viewBox="0 0 {_BAR_WIDTH} 12" preserveAspectRatio="none">'
            yield f'<rect class="process" width="{width:.1f}" height="12"/></svg></td></tr>'
        yield "</table>"
        if rest := counts[BARS:]:
            yield f'<p class="note">and {len(rest)} more with {sum(c for _, c in rest)}</p>'
        yield "</div>"
    yield "</section>"


def _signatures(top: Sequence[Group]) -> Iterator[str]:
    yield '<section id="signatures"><h2>Most frequent</h2><table class="list"><thead><tr>'
    yield "<th>#</th><th>Count</th><th>What</th><th>Program</th><th>First</th><th>Last</th>"
    yield "</tr></thead><tbody>"
    for rank, group in enumerate(top[:TOP]):
        row = group.newest
        kind = "kernel" if row.get("kind") == "kernel" else "process"
        yield f'<tr class="{kind}"><td class="number" data-label="#">{rank + 1}</td>'
        yield f'<td class="number" data-label="Count">{group.count}</td>'
        yield f'<td class="what"><a href="#stack-{rank + 1}">{known(row.get("title"))}</a></td>'
        yield f'<td class="program"><code>{path(program(row))}</code></td>'
        for label, when in (("First", group.first), ("Last", group.last)):
            yield f'<td class="time" data-label="{label}">{text(local_time(when))}</td>'
        yield "</tr>"
    yield "</tbody></table>"
    if len(top) > TOP:
        rest = sum(group.count for group in top[TOP:])
        yield f'<p class="note">and {len(top) - TOP} more with {rest}</p>'
    yield "</section>"


def _stacks(top: Sequence[Group], stacks: Mapping[int, Row]) -> Iterator[str]:
    yield '<section id="stacks"><h2>Newest crash of each</h2>'
    for rank, group in enumerate(top[:TOP]):
        doc = stacks.get(rank, group.newest)
        unfolded = " open" if rank < OPEN else ""
        yield f'<details id="stack-{rank + 1}"{unfolded}><summary><b>{rank + 1}</b> '
        yield f"{known(doc.get('title'))} <span>{_times(group.count)}</span></summary>"
        if explanation := doc.get("explanation"):
            yield f"<p>{text(explanation)}</p>"
        yield "<dl>"
        for label, value in _fields(group, doc):
            yield f"<dt>{label}</dt><dd>{value}</dd>"
        yield "</dl>"
        yield from _frames(doc)
        yield from _report(doc)
        yield "</details>"
    yield "</section>"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _fields(group: Group, doc: Row) -> Iterator[tuple[str, str]]:
    core: Mapping[str, Any] = doc.get("core") or {}
    yield "ID", f"<code>{known(doc.get('id'))}</code>"
    yield "Time", text(local_time(doc.get("time")))
    yield "Program", f"<code>{path(program(doc))}</code>"
    if doc.get("unit"):
        yield "Unit", text(doc["unit"])
    if doc.get("container_id"):
        yield "Container", text(str(doc["container_id"])[:12])
    if doc.get("signal_name"):
        yield "Signal", text(doc["signal_name"])
    stored = core.get("stored_bytes")
    size = f", {format_size(stored)} on disk" if isinstance(stored, int) and stored else ""
    yield "State", known(doc.get("state")) + size
    if group.signature:
        yield "Signature", f"<code>{text(group.signature)}</code>"
    for warning in list(doc.get("warnings") or [])[:3]:
        yield "Warning", text(warning)


def _frames(doc: Row) -> Iterator[str]:
    frames = [frame for frame in doc.get("frames") or [] if isinstance(frame, Mapping)]
    if not frames or (doc.get("kind") == "kernel" and doc.get("report")):  # which has the stack
        return
    interpreted = [frame for frame in frames if frame.get("kind") not in (None, "native")]
    native = [frame for frame in frames if frame.get("kind") in (None, "native")]
    for part in filter(None, (interpreted, native)):  # each has numbers of its own
        yield from _stack(part)


def _stack(frames: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield '<ol class="stack" start="0">'
    for frame in frames[:FRAMES_MAX]:
        file = frame.get("file")
        line = f":{value_text(frame['line'])}" if file and frame.get("line") else ""
        yield f"<li><b>{known(frame.get('function') or frame.get('pc'))}</b>"
        if frame.get("module"):
            yield f" <span>{path(frame['module'])}</span>"
        yield f" <i>{path(file)}{text(line)}</i></li>" if file else "</li>"
    yield "</ol>"
    if len(frames) > FRAMES_MAX:
        yield f'<p class="note">and {len(frames) - FRAMES_MAX} more</p>'


def _report(doc: Row) -> Iterator[str]:
    lines: Iterable[object] = doc.get("report") or (doc.get("log") or [])[-LINES_MAX:]
    words = "\n".join(text(line) for line in list(lines)[:LINES_MAX])
    if words:
        yield f"<pre>{words}</pre>"


def _latest(rows: Sequence[Row], total: int) -> Iterator[str]:
    shown = rows[:LATEST]
    yield '<section id="latest"><h2>Latest</h2><table class="list"><thead><tr>'
    yield "<th>Time</th><th>What</th><th>Program</th><th>Unit</th><th>State</th><th>ID</th>"
    yield "</tr></thead><tbody>"
    for row in shown:
        kind = "kernel" if row.get("kind") == "kernel" else "process"
        yield f'<tr class="{kind}"><td class="time">{text(local_time(row.get("time")))}</td>'
        yield f'<td class="what">{known(row.get("title"))}</td>'
        yield f'<td class="program"><code>{path(program(row))}</code></td>'
        yield f'<td class="unit">{known(row.get("unit"))}</td>'
        yield f'<td class="state">{known(row.get("state"))}</td>'
        yield f'<td class="id"><code>{known(str(row.get("id"))[-8:])}</code></td></tr>'
    yield "</tbody></table>"
    if total > len(shown):
        yield f'<p class="note">and {total - len(shown)} before them</p>'
    yield "</section>"
