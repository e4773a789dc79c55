"""Crashes as text: the table of `list` and `follow`, and the pieces that all output shares.

Pure: rows in, lines out. Every foreign string goes through `printable`. The pages of `info` and
`status` are in pages.py.

Over 400 lines, because it is one list of pieces.
"""

from __future__ import annotations

import time

from crashd.domain.crash.headline import headline
from crashd.domain.crash.keys import LIST_KEYS, SHORT_ID_LENGTH
from crashd.domain.text import printable
from crashd.domain.units import format_size
from crashd.records import NamedTuple

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import Any

    Row = Mapping[str, Any]
else:
    Row = dict

ABSENT = "-"
NARROW = 110
"""Below this width, a time is an age and a program its name alone."""
TITLE_MIN = 26
TITLE_ENOUGH = 44
"""Minimum width of the title, on a very narrow and on a wide terminal.

Other columns are dropped to make room, because the title is what explains the crash.
"""
EXE_MIN = 12
EXE_PADDED = 40
"""Output to a pipe is not cut, but one long path must not push every other title to the right."""
_GIVE_WAY = ("UID", "SIZE", "PID", "STATE", "EXE", "SIGNAL")
"""Columns that a narrow terminal drops, in this order."""

BOLD, DIM, UNDERLINE, RED, GREEN, YELLOW, CYAN = "1", "2", "4", "31", "32", "33", "36"


_STATE_STYLES: dict[str, str | None] = {
    "complete": None,
    "capturing": CYAN,
    **dict.fromkeys(("truncated", "metadata-only", "incomplete"), YELLOW),
    **dict.fromkeys(("lost", "missing"), RED),
    "evicted": DIM,
}
"""By what a row says, which may be a state of a newer crashd; a test compares them with State."""


def styled(text: str, style: str | None) -> str:
    """Wrap `text` in SGR codes; without a style return it unchanged."""
    return f"\x1b[{style}m{text}\x1b[0m" if style else text


def display_width(text: str) -> int:
    """Count the columns that `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(map(_char_width, text))


def _char_width(character: str) -> int:
    if character.isascii():
        return 1
    # imported here because few crashes have names that are not ASCII
    from unicodedata import category, east_asian_width

    if category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """Cut the end off `text` to fit `width` columns; an ellipsis marks the cut."""
    if display_width(text) <= width:
        return text
    used, kept = 1, 0
    for character in text:
        used += _char_width(character)
        if used > width:
            break
        kept += 1
    return text[:kept] + "…"


def cut_path(text: str, width: int) -> str:
    """Cut the beginning off a path, between two names; its last part says more. If that alone is
    too long, cut its end.
    """
    if display_width(text) <= width:
        return text
    name = text.rpartition("/")[2] or text
    if display_width(name) + 2 > width:
        return cut(name, width)
    kept = cut(text[::-1], width)[:-1][::-1]
    return "…" + kept[kept.find("/") :]


def cut_words(text: str, width: int) -> str:
    """Cut the end off `text`, between two words if at least half of the width stays used."""
    if display_width(text) <= width:
        return text
    kept = cut(text, width)[:-1]
    if text[len(kept)] != " ":
        space = kept.rfind(" ")
        if space * 2 < width:
            return kept + "…"
        kept = kept[:space]
    return kept.removesuffix(", in").rstrip(" ,:;") + "…"


def wrap(text: str, width: int | None, indent: int) -> list[str]:
    """Break a text between its words into lines of `width`, all but the first indented."""
    return wrap_words(text.split(" "), width, indent)


def wrap_words(words: Sequence[str], width: int | None, indent: int) -> list[str]:
    """Break between these words only, which may have spaces."""
    if width is None or indent + TITLE_MIN > width:
        return [" ".join(words)]
    lines: list[str] = []
    for word in words:
        if lines and display_width(lines[-1]) + 1 + display_width(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(" " * indent + word if lines else word)
    return lines


def labelled(label: str, text: str, label_width: int, width: int | None) -> Iterator[str]:
    """Yield the lines of one value, behind a label that is aligned to the right.

    A terminal of `width` columns gets the value wrapped in a column of its own, or below its label
    where that column would be too narrow. Without a label, it goes on where the last value ended.
    """
    indent = label_width + 2
    if width is not None and indent + TITLE_MIN > width:
        indent = 4
        yield from wrap(f"{label}: {text}" if label else " " * indent + text, width, indent)
        return
    first, *rest = wrap(text, None if width is None else width - indent, 0)
    yield f"{label + ':' if label else '':>{indent - 1}} {first}"
    for line in rest:
        yield " " * indent + line


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Fill `text` up to `width` columns."""
    if text.isascii():
        return text.rjust(width) if right else text.ljust(width)
    blanks = " " * (width - display_width(text))
    return blanks + text if right else text + blanks


def local_time(text: object) -> str:
    """Convert a record's time (ISO 8601, UTC) to local time, to the second."""
    try:
        return _moment(text).astimezone().isoformat(" ", "seconds")[:19]
    except (ValueError, OverflowError):
        return printable(str(text))


def _moment(text: object) -> datetime:
    from datetime import datetime  # the rows of a listing have their times as numbers

    return datetime.fromisoformat(str(text))


def local_time_of_ns(time_ns: int) -> str:
    """Format ns since the epoch as local time with its zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(time_ns // 10**9))


def _row_time(row: Row) -> str:
    """Return a row's local time."""
    time_ns = row.get("time_ns")
    if not isinstance(time_ns, int):
        return local_time(row.get("time"))
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns // 10**9))


def short_age(text: object, now_ns: int) -> str:
    """Say in few columns how long ago a record's time is; its date if that is long ago."""
    try:
        moment = _moment(text)
        age = now_ns // 10**9 - int(moment.timestamp())
    except (ValueError, OverflowError):
        return printable(str(text))
    return _age(age) or (f"{moment:%Y-%m-%d}" if age > 0 else local_time(text))


def _age(seconds: int) -> str | None:
    """Say how long ago something is; None if it is long ago, or to come."""
    for unit_seconds, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_seconds:
            return f"{seconds // unit_seconds}{unit} ago" if seconds < 100 * 86400 else None
    return f"{seconds}s ago" if seconds >= 0 else None


def _row_age(row: Row, now_ns: int) -> str:
    """Return how long ago a row's time is, as short_age does."""
    time_ns = row.get("time_ns")
    if not isinstance(time_ns, int):
        return short_age(row.get("time"), now_ns)
    age = now_ns // 10**9 - time_ns // 10**9
    if (text := _age(age)) is not None:
        return text
    long_ago = time.strftime("%Y-%m-%d", time.gmtime(time_ns // 10**9))
    return long_ago if age > 0 else _row_time(row)


def clock_time(text: object) -> str:
    """Convert a record's time to the local time of day."""
    return local_time(text)[-8:]


def value_text(value: object) -> str:
    """Show one value of a record on one line; ABSENT if it has none."""
    return ABSENT if value is None or value == "" else printable(str(value))


def signal_text(row: Row) -> str:
    """Return the name of the signal; ABSENT for a kernel crash."""
    return value_text(row.get("signal_name"))


def stored_text(row: Row) -> str:
    """Return the size of the core on disk; ABSENT if there is no core."""
    core = row.get("core") or {}
    kept = core.get("path") or (row.get("kind") == "kernel" and core.get("stored_bytes"))
    return format_size(core.get("stored_bytes") or 0) if kept else ABSENT


def state_text(row: Row) -> str:
    """Return the state; for a deleted core also the limit that it exceeded."""
    limit = (row.get("evicted") or {}).get("reason")
    state = value_text(row.get("state"))
    return f"{state} ({value_text(limit)})" if limit else state


def what_crashed(row: Row) -> str:
    """Return the executable, or the comm if that is unknown; for a kernel crash the release."""
    if row.get("kind") == "kernel":
        release = (row.get("kernel") or {}).get("release")
        return f"kernel {value_text(release)}" if release else "kernel"
    return value_text(row.get("exe") or row.get("comm"))


def program_name(row: Row) -> str:
    """Return the name of what crashed, without directories."""
    name = what_crashed(row)
    return name.removesuffix(" (deleted)").rpartition("/")[2] or name


def headline_text(row: Row) -> str:
    """Return what the title says besides signal and program; ABSENT if that is all."""
    name = program_name(row)
    words = headline(str(row.get("title") or ""), str(row.get("comm") or ""), name)
    return value_text(words)


class _Column(NamedTuple):
    heading: str
    cell: Callable[[Row], str]
    right: bool = False


COLUMNS = (
    _Column("TIME", _row_time),
    _Column("ID", lambda row: value_text(row.get("id"))[-SHORT_ID_LENGTH:]),
    _Column("PID", lambda row: value_text(row.get("pid")), right=True),
    _Column("UID", lambda row: value_text(row.get("uid")), right=True),
    _Column("SIGNAL", signal_text),
    _Column("STATE", state_text),
    _Column("SIZE", stored_text, right=True),
    _Column("EXE", what_crashed),
    _Column("TITLE", headline_text),
)
HEADINGS = tuple(column.heading for column in COLUMNS)
_HOST = _Column("HOST", lambda row: value_text(row.get("hostname") or row.get("host")))
FLEET_KEYS = (*LIST_KEYS, "host", "labels")
"""Keys of `crashctl --fleet list --json`."""
_NO_STYLES: list[str | None] = [None] * (len(COLUMNS) + 1)
_FOLLOW_WIDTHS = {"ID": SHORT_ID_LENGTH, "PID": 7, "UID": 5, "SIGNAL": 7, "STATE": 8, "SIZE": 5}


def follow_widths(width: int | None) -> dict[str, int]:
    """Return the widths that `follow` uses, because it does not know the crashes to come."""
    narrow = width is not None and width < NARROW
    return {**_FOLLOW_WIDTHS, "TIME": 8 if narrow else 19, "EXE": 15 if narrow else 24}


class Table:
    """A table of crashes for a terminal of `width` columns, or of any width (None) for a pipe.

    On a terminal, columns are dropped to make room for the title and long cells are cut. In a pipe
    nothing is. `now_ns` is when a narrow terminal's ages are counted from; without it, it gets the
    time of day.
    """

    def __init__(
        self,
        width: int | None,
        *,
        color: bool,
        now_ns: int | None = None,
        fleet: bool = False,
    ) -> None:
        self._width = width
        self._color = color
        self._columns: tuple[_Column, ...] = COLUMNS
        if width is not None and width < NARROW:
            brief: dict[str, Callable[[Row], str]] = {
                "TIME": lambda row: (
                    clock_time(row.get("time")) if now_ns is None else _row_age(row, now_ns)
                ),
                "EXE": lambda row: "kernel" if row.get("kind") == "kernel" else program_name(row),
            }
            self._columns = tuple(
                column._replace(cell=brief.get(column.heading, column.cell)) for column in COLUMNS
            )
        if fleet:
            self._columns = (*self._columns[:2], _HOST, *self._columns[2:])
        self._headings = tuple(column.heading for column in self._columns)
        self._widths: dict[str, int] = {}
        self._room: dict[str, int] = {}
        self.expect({heading: len(heading) for heading in self._headings})

    def expect(self, widths: Mapping[str, int]) -> None:
        """Make columns at least this wide."""
        for heading, width in widths.items():
            self._widths[heading] = max(self._widths.get(heading, 0), width)
        if self._width is None:
            self._room = self._widths | {"EXE": min(self._widths.get("EXE", 0), EXE_PADDED)}
        else:
            self._room = fit(self._widths, self._width)
        self._shown = tuple(self._layout())
        self._template = self._plain_template()

    def _layout(self) -> Iterator[tuple[int, int, Callable[[str, int], str] | None, bool]]:
        """Yield place, width, how to cut, and alignment of the columns that are shown."""
        for place, column in enumerate(self._columns):
            if column.heading in self._room:
                cutter = cut_path if column.heading == "EXE" else cut_words
                yield (
                    place,
                    self._room[column.heading],
                    cutter if self._width is not None else None,
                    column.right,
                )

    def _plain_template(self) -> str | None:
        """Return the format of a line of ASCII cells for a pipe, where nothing is cut or coloured:
        a listing may have 100,000 of them.
        """
        if self._width is not None or self._color:
            return None
        parts = [f"%{'' if right else '-'}{width}s" for _, width, _, right in self._shown]
        return " ".join([*parts[:-1], "%s"])

    def lines(self, rows: Sequence[Row], *, legend: bool) -> Iterator[str]:
        """Yield the lines of `rows`, each column as wide as its widest cell."""
        cells = [[column.cell(row) for column in self._columns] for row in rows]
        columns = zip(*cells, strict=True)
        self.expect(dict(zip(self._headings, map(_widest, columns), strict=False)))
        if legend:
            yield self.legend()
        for row, line in zip(rows, cells, strict=True):
            yield self._line(line, self._styles(row))

    def legend(self) -> str:
        """Return the line of headings."""
        styles = [UNDERLINE if self._color else None] * len(self._headings)
        return self._line(self._headings, styles)

    def line(self, row: Row) -> str:
        """Return the line of one crash, aligned to the widths set so far."""
        return self._line([column.cell(row) for column in self._columns], self._styles(row))

    def note(self, row: Row) -> str:
        """Return a line, below the one of `line`, that says what the analysis has found."""
        indent = " " * self._room["TIME"]
        text = f"{indent} {value_text(row.get('id'))[-SHORT_ID_LENGTH:]} {headline_text(row)}"
        return text if self._width is None else cut_words(text, self._width)

    def _styles(self, row: Row) -> list[str | None]:
        if not self._color:
            return _NO_STYLES
        state = _STATE_STYLES.get(str(row.get("state")))
        marked = "STATE" if "STATE" in self._room else "ID"
        return [state if heading == marked else None for heading in self._headings]

    def _line(self, cells: Sequence[str], styles: Sequence[str | None]) -> str:
        if self._template is not None and "".join(cells).isascii():
            return (self._template % tuple(cells)).rstrip()
        parts = []
        for place, width, shorten, right in self._shown:
            cell, style = cells[place], styles[place]
            if shorten is not None and len(cell) * 2 > width:  # a wide character takes two columns
                cell = shorten(cell, width)
            if place != len(cells) - 1:
                cell = pad(cell, width, right=right)
            parts.append(f"\x1b[{style}m{cell}\x1b[0m" if style else cell)
        return " ".join(parts).rstrip()


def fit(
    widths: Mapping[str, int], width: int, give_way: Sequence[str] = _GIVE_WAY
) -> dict[str, int]:
    """Choose the columns that a terminal of `width` shows, and their widths.

    Columns of `give_way` are dropped one by one until the title has its minimum. The executable
    shrinks first, because the end of a path is enough to recognise it.
    """
    chosen = {name: room for name, room in widths.items() if name != "TITLE"}
    least = min(TITLE_ENOUGH, max(TITLE_MIN, width - 44))
    for heading in ("", *give_way):
        chosen.pop(heading, None)
        room = width - least - sum(w + 1 for name, w in chosen.items() if name != "EXE")
        if "EXE" in chosen:
            chosen["EXE"] = min(widths["EXE"], max(EXE_MIN, width // 4, room - least), room - 1)
            room = -1 if chosen["EXE"] < min(EXE_MIN, widths["EXE"]) else room
        if room >= 0:
            break
    return chosen | {"TITLE": max(width - sum(w + 1 for w in chosen.values()), 1)}


def render_grid(
    cells: Sequence[Sequence[str]],
    width: int | None,
    *,
    numbers: Container[str],
    give_way: Sequence[str],
    heading_style: str | None,
    legend: bool,
) -> Iterator[str]:
    """Yield the lines of a table whose first line names its columns.

    Columns of `numbers` are aligned to the right; a terminal of `width` drops those of `give_way`
    as `fit` does, and cuts EXE and the last column.
    """
    others = cells[0][:-1]
    room = dict(zip((*others, "TITLE"), map(_widest, zip(*cells, strict=True)), strict=True))
    if width is not None:
        room = fit(room, width, give_way)
    for number, line in enumerate(cells if legend else cells[1:]):
        parts = []
        for heading, text in zip(others, line, strict=False):
            if heading in room:
                shown = cut_path(text, room[heading]) if heading == "EXE" else text
                parts.append(pad(shown, room[heading], right=heading in numbers))
        parts.append(line[-1] if width is None else cut_words(line[-1], room["TITLE"]))
        style = heading_style if legend and number == 0 else None
        yield styled(" ".join(parts).rstrip(), style)


def _widest(column: Iterable[str]) -> int:
    texts = tuple(column)
    return max(map(len if "".join(texts).isascii() else display_width, texts))


def render_field(rows: Iterable[Row], name: str) -> Iterator[str]:
    """Yield the value of one field of each crash, as `list -F` does; nothing where it is unknown.

    Raises:
        UsageError: there is no such field.
    """
    import json

    field = shown_field(name)
    for row in rows:
        value = _journals_value(row, field)
        if isinstance(value, (dict, list)):
            yield json.dumps(value)
        elif value not in (None, ""):
            yield printable(str(value))


def shown_field(name: str) -> str:
    """Return the key that `-F` shows for a name.

    Raises:
        UsageError: there is no such field.
    """
    from crashd.domain.crash.match import SHOWN, field_of

    return field_of(name, SHOWN)


def _journals_value(row: Row, field: str) -> object:
    """Return a key's value; of those that only the journal has, what systemd-coredump writes."""
    time_ns = row.get("time_ns")
    if field == "timestamp" and isinstance(time_ns, int):
        return time_ns // 1000
    if field == "filename":
        return (row.get("core") or {}).get("path")
    if field == "truncated":
        return "1" if row.get("state") == "truncated" else None
    return row.get(field)


def render_json_list(rows: Iterable[Row], form: str | bool = True) -> Iterator[str]:
    """Yield the parts of one JSON array with exactly LIST_KEYS: one crash per line, or all of it
    on one (`short`) or indented (`pretty`).
    """
    before, between, after = {
        "short": ("[", ",", "]\n"),
        "pretty": ("[\n  ", ",\n  ", "\n]\n"),
    }.get(str(form), ("[", "\n,", "\n]\n"))
    separator = before
    for row in rows:
        if form is True:
            text = json_line(row)
        else:
            text = json_page(_keyed(row), form).replace("\n", "\n  ")
        yield separator + text
        separator = between
    yield after if separator == between else "[]\n"


def json_line(row: Row) -> str:
    """Return a crash as one line of JSON; ASCII only, so that it cannot drive a terminal."""
    import json  # tables do without

    return json.dumps(_keyed(row))


def _keyed(row: Row) -> dict[str, Any]:
    """Return a row with exactly its keys: those of a fleet's crash, or of one on this host."""
    return {key: row.get(key) for key in (FLEET_KEYS if "host" in row else LIST_KEYS)}


def json_page(value: object, form: str | bool = True) -> str:
    """Return JSON, indented for people to read unless `form` is `short`; ASCII only."""
    import json

    if form == "short":
        return json.dumps(value, separators=(",", ":"))
    return json.dumps(value, indent=2)
