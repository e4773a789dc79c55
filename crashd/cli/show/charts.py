"""Draws bars and columns on a terminal: in eighths of a character, or in ASCII without UTF-8.

Pure: numbers in, lines out. Labels are foreign strings and are escaped here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from crashd.cli.render import CYAN, DIM, cut, cut_path, display_width, pad, styled
from crashd.domain.text import printable

WIDTH_MIN = 30
"""Columns; on a narrower terminal the lines are too long."""
_ROWS = " ▁▂▃▄▅▆▇█"
_BARS = " ▏▎▍▌▋▊▉█"
_ASCII_ROWS = " ...::::#"
_ASCII_BARS = "        #"
_LABEL_SHARE = 3


@dataclass(frozen=True, slots=True)
class Canvas:
    """The terminal to draw on."""

    width: int
    """Columns."""
    unicode: bool
    """Whether it shows block and line characters."""
    color: bool

    def label(self, text: str, width: int) -> str:
        """Escape a name and cut it to `width`; of a path keep the end."""
        shown = printable(text)
        if self.unicode:
            return (cut_path if shown.startswith("/") else cut)(shown, width)
        shown = shown.encode("ascii", "backslashreplace").decode()
        if len(shown) <= width:
            return shown
        return "~" + shown[1 - width :] if shown.startswith("/") else shown[: width - 1] + "~"

    def paint(self, text: str, style: str) -> str:
        """Return `text` in `style`, if colours are used."""
        return styled(text, style if self.color else None)


def draw_bars(canvas: Canvas, counts: Sequence[tuple[str, int]], lines_max: int) -> Iterator[str]:
    """Draw a bar for each count, largest first; sum up those beyond `lines_max` in one line."""
    shown = list(counts[:lines_max])
    rest = counts[lines_max:]
    if not shown:
        return
    number_width = max(len(str(count)) for _, count in shown)
    room = max(canvas.width, WIDTH_MIN) - 2
    labels = [canvas.label(name, room // _LABEL_SHARE) for name, _ in shown]
    label_width = max(map(display_width, labels))
    bar_width = room - label_width - number_width - 2
    most = max(count for _, count in shown)
    for label, (_, count) in zip(labels, shown, strict=True):
        bar = canvas.paint(_bar(canvas, count, most, bar_width), CYAN)
        yield f"  {pad(label, label_width)} {count:>{number_width}} {bar}".rstrip()
    if rest:
        more = sum(count for _, count in rest)
        yield canvas.paint(f"  and {len(rest)} more with {more}", DIM)


def _bar(canvas: Canvas, count: int, most: int, width: int) -> str:
    glyphs = _BARS if canvas.unicode else _ASCII_BARS
    eighths = -(-count * width * 8 // max(most, 1))  # rounded up, so that 1 is visible
    if not canvas.unicode:
        eighths = -(-eighths // 8) * 8
    whole, part = divmod(eighths, 8)
    return (glyphs[8] * whole + (glyphs[part] if part else ""))[:width]


def draw_columns(
    canvas: Canvas,
    values: Sequence[int],
    *,
    height: int,
    ends: tuple[str, str],
    marks: Mapping[int, str],
) -> Iterator[str]:
    """Draw a column for each value, above an axis labelled at both ends.

    `marks` maps the index of a column to a character drawn below it.
    """
    most = max(values, default=0)
    margin = len(str(most)) + 1
    glyphs = _ROWS if canvas.unicode else _ASCII_ROWS
    side, corner, line = "│└─" if canvas.unicode else "|+-"
    # every column gets as many characters as fit
    each = max((canvas.width - margin - 2) // max(len(values), 1), 1)
    heights = [-(-value * height * 8 // most) if most else 0 for value in values]
    for row in range(height - 1, -1, -1):
        cells = [glyphs[min(max(h - row * 8, 0), 8)] * each for h in heights]
        label = str(most) if row == height - 1 else ""
        text = canvas.paint("".join(cells).rstrip(), CYAN)
        yield f"  {label:>{margin - 1}}{side}{text}"
    width = each * len(values)
    yield f"  {0:>{margin - 1}}{corner}{line * width}"
    if marks:
        cells = [pad(marks.get(index, " "), each) for index in range(len(values))]
        yield (" " * (margin + 2) + "".join(cells)).rstrip()
    left, right = ends
    gap = max(width - display_width(left) - display_width(right), 1)
    yield " " * (margin + 2) + left + " " * gap + right
